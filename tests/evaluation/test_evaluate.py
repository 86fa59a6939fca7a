from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional

from crucible.datasets.meta import load_meta
from crucible.errors import CheckpointError, ConfigError
from crucible.evaluation.__main__ import main
from crucible.evaluation.checkpoint import TrainedModel, load_trained
from crucible.evaluation.evaluate import Request, evaluate, figures
from crucible.training.data import Dataset
from tests.evaluation.conftest import Trained


@pytest.fixture
def example(trained: Callable[..., Trained]) -> Trained:
    return trained("char", False)


def test_the_better_of_two_checkpoints_is_measured_sampled_and_exported(example: Trained, tmp_path: Path) -> None:
    request = Request(example.checkpoints, example.data, tmp_path, formats=("huggingface", "nanogpt"), samples=2)

    metrics = evaluate(request)

    losses = {entry["step"]: entry["val_loss"] for entry in metrics["candidates"]}
    assert set(losses) == {0, 6}
    assert metrics["step"] == 6
    assert metrics["val_loss"] == losses[6] < losses[0]
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        "README.md",
        "config.json",
        "metrics.json",
        "model.safetensors",
        "nanogpt/ckpt.pt",
        "samples.txt",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize("by", ["the trainer, at its end", "the evaluation"])
def test_the_loss_is_the_mean_over_every_token_of_the_split(
    example: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "the evaluation":
        monkeypatch.setattr(TrainedModel, "full_val_loss", None)
    said: list[str] = []
    metrics = evaluate(Request(example.checkpoints[-1:], example.data, tmp_path, formats=(), samples=0), said.append)
    assert any("reading" in line for line in said) == (by == "the evaluation"), "read twice, or not at all"

    model = load_trained(example.checkpoints[-1]).model
    val = Dataset(example.data).val
    losses = []
    for start in range(0, val.tokens - 1, example.config.block_size):
        window = torch.from_numpy(val.read(start, min(example.config.block_size + 1, val.tokens - start)))
        with torch.inference_mode():
            logits = model(window[None, :-1])[0]
        losses += functional.cross_entropy(logits, window[1:], reduction="none").tolist()
    assert len(losses) == metrics["tokens"] == val.tokens - 1
    assert metrics["val_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["val_loss"]))


def test_bits_per_byte_do_not_depend_on_the_tokenizer(trained: Callable[..., Trained]) -> None:
    # A model that knows nothing but that there are bytes needs 8 bits for each of them.
    by_bytes = figures(math.log(256), load_meta(trained("byte", True).data))
    assert by_bytes["bits_per_byte"] == pytest.approx(8)
    assert by_bytes["perplexity"] == pytest.approx(256)
    longer_tokens = load_meta(trained("bpe", False).data)
    split = longer_tokens.splits["val"]
    assert figures(math.log(256) * split.bytes / split.tokens, longer_tokens)["bits_per_byte"] == pytest.approx(8)


def test_samples_follow_the_seed_and_continue_the_prompt(example: Trained, tmp_path: Path) -> None:
    def sample(**options: object) -> str:
        request = Request(example.checkpoints[-1:], example.data, tmp_path, (), sample_tokens=40, **options)  # type: ignore[arg-type]
        return str(evaluate(request)["sample"])

    assert sample(samples=1) == sample(samples=1)
    assert sample(samples=1, seed=1) != sample(samples=1, seed=2)
    assert sample(samples=1, prompt="Line 7").startswith("Line 7")
    assert len(sample(samples=1)) == 40
    with pytest.raises(ConfigError, match=r"character '\$'"):
        sample(samples=1, prompt="$")


def test_the_card_tells_data_config_metrics_and_how_it_was_trained(example: Trained, tmp_path: Path) -> None:
    attempt = {"number": 1, "pool": "ec2-spot", "instance": "g5.xlarge", "from_step": 0, "to_step": 6, "end": "lost"}
    job = {"job": "night-run", "attempts": [attempt, attempt | {"number": 2}], "seconds": 75.0, "cost_usd": 0.5}
    job["store"] = "s3://bucket/runs"

    both = ("huggingface", "nanogpt")
    metrics = evaluate(Request(example.checkpoints[-1:], example.data, tmp_path, both, job=job))

    _, front, text = (tmp_path / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front)["crucible"]
    assert facts["data_digest"] == load_meta(example.data).digest
    assert facts["config"]["n_layer"] == 2
    assert facts["metrics"]["val_loss"] == metrics["val_loss"]
    assert (facts["attempts"], facts["training_seconds"], facts["cost_usd"]) == (2, 75.0, 0.5)
    assert "1 min 15 s in 2 attempts, $0.50." in text
    assert f"`crucible data export-nanogpt {facts['data_digest'][:12]} data/crucible --store s3://bucket/runs`" in text
    assert "GPT2LMHeadModel.from_pretrained" in text


def test_bad_input_is_told_and_leaves_no_metrics_to_be_trusted(
    example: Trained, trained: Callable[..., Trained], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    evaluate(Request(example.checkpoints[-1:], example.data, out, formats=(), samples=0))
    assert (out / "metrics.json").exists()
    damaged = tmp_path / "step-00000006"
    shutil.copytree(example.checkpoints[-1], damaged)
    weights = bytearray((damaged / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(weights)

    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        evaluate(Request([damaged], example.data, out))
    assert not (out / "metrics.json").exists()
    with pytest.raises(ConfigError, match="is not the dataset that step-00000006 was trained on"):
        evaluate(Request(example.checkpoints[-1:], trained("byte", True).data, out))
    with pytest.raises(ConfigError, match="formats: 'onnx' is not known; choose from huggingface, nanogpt"):
        evaluate(Request(example.checkpoints[-1:], example.data, out, formats=("onnx",)))


def test_the_command_line_ends_with_one_line_of_json_or_one_error(
    example: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--data", str(example.data), "--out", str(tmp_path)]
    checkpoints = [str(folder) for folder in example.checkpoints]

    assert main(["--checkpoint", *checkpoints, *place, "--samples", "0", "--formats", "", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 6

    assert main(["--checkpoint", str(tmp_path / "missing"), *place]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
