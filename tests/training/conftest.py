"""A small dataset and a small model: real ones, only small."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from crucible.config import TrainConfig
from crucible.training.data import Dataset
from crucible.training.model import GPT
from crucible.training.processes import Processes
from crucible.training.trainer import Result, Trainer
from crucible.workload.metrics import Metrics

VOCABULARY = 17

TINY = TrainConfig(
    n_layer=2,
    n_head=2,
    n_embd=16,
    block_size=16,
    batch_size=4,
    dropout=0.1,  # so that a lost generator shows
    max_iters=30,
    warmup_iters=5,
    learning_rate=3e-3,
    eval_interval=10,
    eval_iters=2,
    log_interval=1,
    device="cpu",
    threads=1,
    fast_gemm="off",
)


def write_dataset(folder: Path, train: int = 4000, val: int = 700, shards: int = 3) -> Path:
    """A dataset folder of a walk with steps of 1 to 3: something a model can learn."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for name, count in (("train", train), ("val", val)):
        tokens = (np.cumsum(rng.integers(1, 4, count)) % VOCABULARY).astype("<u2")
        entries = []
        for number, piece in enumerate(np.array_split(tokens, shards)):
            file = f"{name}-{number:05d}.bin"
            (folder / file).write_bytes(piece.tobytes())
            digest = hashlib.sha256(piece.tobytes()).hexdigest()
            entries.append({"file": file, "tokens": len(piece), "sha256": digest})
        splits[name] = {"tokens": count, "bytes": count, "shards": entries}
    meta = {
        "schema_version": 1,
        "digest": f"walk-{train}-{val}",
        "source": {},
        "tokenizer": {"kind": "byte", "file": "tokenizer.json", "sha256": "of the walk"},
        "vocab_size": VOCABULARY,
        "dtype": "uint16",
        "splits": splits,
    }
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("walk"))


CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
"""Which of GPT-2's tensors Hugging Face's files hold transposed."""


def write_gpt2(folder: Path, tokens: int, block_size: int, **shape: int) -> Path:
    """A GPT-2 in Hugging Face's files; tests/evaluation has some that transformers itself writes."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    names = GPT(TrainConfig(**shape, bias=True, block_size=block_size), tokens).state_dict().items()
    weights = {name: 0.3 * torch.randn(tensor.shape) for name, tensor in names if name != "lm_head.weight"}
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:tokens]
    transposed = {n: (t.t() if n.endswith(CONV1D) else t).contiguous() for n, t in weights.items()}
    save_file(transposed, folder / "model.safetensors")
    config = {"model_type": "gpt2", "n_inner": None, "activation_function": "gelu"}
    config |= {name: shape[name] for name in ("n_head", "n_embd")}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def dataset(data_folder: Path) -> Dataset:
    return Dataset(data_folder)


@pytest.fixture(autouse=True)
def _one_thread_and_own_signals() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)


def train_in(
    folder: Path,
    dataset: Dataset,
    config: TrainConfig = TINY,
    *,
    resume: Path | None = None,
    until: int | None = None,
    keep: int | None = None,
    gemm: str = "mkl",
    processes: Processes | None = None,
) -> tuple[Trainer, Result]:
    """Train in this process, from `resume` on if given, and stop before step `until` + 1 if given."""
    trainer = Trainer(config, dataset, gemm=gemm, processes=processes)
    if resume is not None:
        trainer.resume(resume)
    metrics = Metrics(folder / "metrics.jsonl")
    return trainer, trainer.run(folder, metrics=metrics, stop=lambda: trainer.step == until, keep=keep)


Train = Callable[..., tuple[Trainer, Result]]


@pytest.fixture
def train(dataset: Dataset) -> Train:
    """`train_in` on the small dataset: `train(folder, config, …)`."""
    return lambda folder, *arguments, **options: train_in(folder, dataset, *arguments, **options)
