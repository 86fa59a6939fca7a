"""Measure a trained model, sample from it, export it, and write its model card."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from crucible.datasets.meta import DatasetMeta, load_meta
from crucible.datasets.tokenizers import Tokenizer, load_tokenizer
from crucible.errors import ConfigError
from crucible.evaluation.card import model_card
from crucible.evaluation.checkpoint import TrainedModel, load_trained
from crucible.evaluation.huggingface import export_huggingface
from crucible.evaluation.nanogpt import export_nanogpt
from crucible.training.data import Dataset
from crucible.training.evaluate import full_loss
from crucible.training.generate import generate

FORMATS = ("huggingface", "nanogpt")
METRICS = "metrics.json"
"""Written last: with it, the folder is whole."""


@dataclass(frozen=True)
class Request:
    """What to evaluate and what to write."""

    checkpoints: Sequence[Path]
    """Folders; of several, the model with the lowest loss is the one that samples, and is exported."""
    data: Path
    out: Path
    formats: Sequence[str] = ("huggingface",)
    samples: int = 3
    sample_tokens: int = 300
    prompt: str = ""
    """What the samples begin with; empty: what stands between two documents, which is then not shown."""
    temperature: float = 0.8
    seed: int = 1337
    device: str = "auto"
    job: Mapping[str, Any] | None = field(default=None)
    """Facts about the training for the model card; see `card.model_card`."""


def evaluate(request: Request, log: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Measure, sample, export, and write the model card; returns the content of `metrics.json`.

    Raises `ConfigError` for an unknown format or device or a prompt the tokenizer cannot encode, `CheckpointError` for
    a damaged checkpoint, `DataError` for a damaged dataset.
    """
    began = time.monotonic()
    unknown = sorted(set(request.formats) - set(FORMATS))
    if unknown:
        raise ConfigError(f"formats: {unknown[0]!r} is not known; choose from {', '.join(FORMATS)}")
    meta, dataset, tokenizer = load_meta(request.data), Dataset(request.data), load_tokenizer(request.data)
    prompt = _prompt_ids(request.prompt, tokenizer)
    device = _device(request.device)
    request.out.mkdir(parents=True, exist_ok=True)
    (request.out / METRICS).unlink(missing_ok=True)

    losses: dict[int, float] = {}
    best: TrainedModel | None = None
    for folder in request.checkpoints:
        trained = load_trained(folder)
        _require_dataset(trained, meta)
        trained.model.to(device)
        losses[trained.step] = _val_loss(trained, dataset, log)
        log(f"step {trained.step}: validation loss {losses[trained.step]:.4f}")
        if best is None or losses[trained.step] < losses[best.step]:
            best = trained
    if best is None:
        raise ConfigError("checkpoint: none is given; name at least one checkpoint folder")

    texts = _samples(request, best, prompt, tokenizer, log)
    best.model.to("cpu")
    metrics = {
        "schema_version": 1,
        "step": best.step,
        **figures(losses[best.step], meta),
        "parameters": sum(parameter.numel() for parameter in best.model.parameters()),
        "weights_sha256": best.weights_sha256,
        "config_digest": best.state["config_digest"],
        "dataset_digest": meta.digest,
        "candidates": [{"step": step, "val_loss": loss} for step, loss in losses.items()],
        "formats": list(request.formats),
        "sample": texts[0] if texts else None,
        "environment": {"torch": torch.__version__, "device": device.type},
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - began, 3),
    }
    _Results(request, best, tokenizer, meta, metrics, texts).write(log)
    return metrics


def _samples(
    request: Request, trained: TrainedModel, prompt: list[int], tokenizer: Tokenizer, log: Callable[[str], None]
) -> list[str]:
    if not request.samples:
        return []
    log(f"writing {request.samples} samples of {request.sample_tokens} tokens")
    seeds = range(request.seed, request.seed + request.samples)
    texts = generate(trained.model, prompt, request.sample_tokens, temperature=request.temperature, seeds=seeds)
    return [tokenizer.decode(ids if request.prompt else ids[len(prompt) :]) for ids in texts]


def _val_loss(trained: TrainedModel, dataset: Dataset, log: Callable[[str], None]) -> float:
    """Over the whole split; the trainer usually has measured it at its end, and this machine may have no GPU."""
    if trained.full_val_loss is not None:
        return trained.full_val_loss
    log(f"step {trained.step}: reading {dataset.val.tokens:,} validation tokens")
    return full_loss(trained.model, dataset, "val")


def figures(val_loss: float, meta: DatasetMeta) -> dict[str, Any]:
    """The loss in nats per token, its exponential, and the loss in bits per byte of text.

    Bits per byte do not depend on the tokenizer: loss / ln 2 x tokens / bytes of the validation split.
    """
    split = meta.splits["val"]
    return {
        "val_loss": val_loss,
        "perplexity": math.exp(min(val_loss, 700.0)),
        "bits_per_byte": val_loss / math.log(2) * split.tokens / split.bytes,
        "tokens": split.tokens - 1,
        "text_bytes": split.bytes,
    }


@dataclass(frozen=True)
class _Results:
    """What was found, and is written into the request's folder."""

    request: Request
    best: TrainedModel
    tokenizer: Tokenizer
    meta: DatasetMeta
    metrics: Mapping[str, Any]
    texts: Sequence[str]

    def write(self, log: Callable[[str], None]) -> None:
        out, formats = self.request.out, self.request.formats
        if self.texts:
            rule = "\n" + "-" * 80 + "\n"
            (out / "samples.txt").write_text(rule.join(self.texts) + "\n", encoding="utf-8")
        if "huggingface" in formats:
            log("exporting for transformers")
            export_huggingface(self.best, self.tokenizer, out)
        if "nanogpt" in formats:
            log("exporting for nanoGPT")
            export_nanogpt(self.best, out / "nanogpt", best_val_loss=self.metrics["val_loss"])
        config = self.best.config.model_dump(mode="json")
        job = self.request.job
        store = job.get("store") if job else _store_of(self.request.data)
        card = model_card(self.metrics, config, self.meta, self.texts, job, store)
        (out / "README.md").write_text(card, encoding="utf-8")
        (out / METRICS).write_text(json.dumps(self.metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _store_of(data: Path) -> str | None:
    """The store that the dataset folder lies in; None for a copy in this machine's cache."""
    folder = data.absolute()
    return (
        folder.parents[1].as_uri() if folder.parent.name == "datasets" and folder.parents[1].name != "cache" else None
    )


def _prompt_ids(prompt: str, tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids; for an empty one, what stands between two documents, or else the first token there is."""
    ids = [int(token) for token in tokenizer.encode(prompt)] if prompt else []
    return ids or list(tokenizer.separator) or [0]


def _require_dataset(trained: TrainedModel, meta: DatasetMeta) -> None:
    if trained.state["dataset_digest"] != meta.digest:
        raise ConfigError(
            f"data: {meta.digest} is not the dataset that {trained.folder.name} was trained on "
            f"({trained.state['dataset_digest']}); its tokens mean something else, so give that one"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: 'cuda' is not available on this machine; use 'auto'")
    return torch.device(name)
