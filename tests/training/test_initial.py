"""Training from weights that exist: Hugging Face's GPT-2, nanoGPT's ckpt.pt, a checkpoint folder of the trainer."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from crucible.config import TrainConfig
from crucible.errors import ConfigError
from crucible.training.__main__ import main
from crucible.training.initial_files import read_initial
from crucible.training.initial_source import Source
from crucible.training.model import GPT, load_model
from crucible.training.optimizer import FlatAdamW
from tests.training.conftest import TINY, VOCABULARY, train_in, write_gpt2

BEYOND_PADDING = 1100
SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 16, "bias": True}


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gpt2(tmp_path_factory.mktemp("gpt2"), BEYOND_PADDING, block_size=32, n_layer=2, n_head=2, n_embd=16)


def model_from(path: Path, vocab_size: int, **stated: Any) -> GPT:
    initial = read_initial(path)
    config = TrainConfig.parse(initial.settings(TINY.model_dump(), stated))
    model = GPT(config, vocab_size).eval()
    initial.copy_into(FlatAdamW(model, config), vocab_size)
    return model


def test_the_files_of_the_hub_have_no_prefix_and_hold_masks(gpt2: Path, tmp_path: Path) -> None:
    plain = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(gpt2 / "model.safetensors").items()
    }
    plain["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    save_file(plain, tmp_path / "weights.safetensors")
    with pytest.raises(ConfigError, match=r"n_head: .* does not say it; set it"):
        model_from(tmp_path / "weights.safetensors", BEYOND_PADDING)
    tokens = torch.arange(20)[None]
    with torch.inference_mode():
        alone = model_from(tmp_path / "weights.safetensors", BEYOND_PADDING, n_head=2)(tokens)
        torch.testing.assert_close(alone, model_from(gpt2, BEYOND_PADDING)(tokens))


def test_every_value_that_contradicts_the_weights_is_named_at_once(gpt2: Path) -> None:
    stated = {"n_layer": "3", "n_embd": 32, "block_size": 64, "bias": False, "n_head": 2}
    with pytest.raises(ConfigError) as caught:
        read_initial(gpt2).settings({}, stated)
    assert str(caught.value) == (
        f"n_layer = 3, but {gpt2} has 2; leave it out, or set n_layer = 2; "
        f"n_embd = 32, but {gpt2} has 16; leave it out, or set n_embd = 16; "
        f"block_size = 64, but {gpt2} has 32 positions; lower it to at most 32; "
        f"bias = False, but {gpt2} has True; leave it out, or set bias = True"
    )
    with pytest.raises(ConfigError, match=r"has 1,100 tokens, the dataset 65; prepare the dataset with the checkpoint"):
        model_from(gpt2, 65)


def broken(gpt2: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(gpt2, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda gpt2, folder: folder / "nowhere", "does not exist on this machine; give a Hugging Face GPT-2 folder"),
        (lambda gpt2, folder: broken(gpt2, folder, model_type="llama"), "model_type = 'llama'; only 'gpt2'"),
        (lambda gpt2, folder: broken(gpt2, folder, n_inner=40), "n_inner = 40; only 64"),
        (lambda gpt2, folder: broken(gpt2, folder, activation_function="relu"), "only GELU"),
        (lambda gpt2, folder: truncated(broken(gpt2, folder) / "model.safetensors"), "cannot be read: SafetensorError"),
        (lambda gpt2, folder: pickled(folder, {"weights": torch.zeros(2)}), "it has no model and model_args"),
        (lambda gpt2, folder: truncated(pickled(folder, nanogpt_checkpoint())), "ckpt.pt cannot be read"),
    ],
    ids=["missing", "llama", "n_inner", "relu", "cut", "dict", "cut-pt"],
)
def test_what_cannot_be_started_from_is_refused(
    gpt2: Path, tmp_path: Path, make: Callable[[Path, Path], Path], message: str
) -> None:
    with pytest.raises(ConfigError, match="init_from: ") as caught:
        read_initial(make(gpt2, tmp_path / "model"))
    assert message in str(caught.value)


def truncated(file: Path) -> Path:
    os.truncate(file, file.stat().st_size // 2)
    return file


def pickled(folder: Path, content: object) -> Path:
    folder.mkdir(parents=True)
    torch.save(content, folder / "ckpt.pt")
    return folder / "ckpt.pt"


def nanogpt_checkpoint() -> dict[str, Any]:
    """As nanoGPT saves a compiled model without flash attention, after three updates."""
    torch.manual_seed(3)
    model = GPT(TINY.model_copy(update=SHAPE), VOCABULARY)
    weights: dict[str, Tensor] = {f"_orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    for layer in (0, 1):
        weights[f"_orig_mod.transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.2},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.8, 0.95))
    tokens = torch.randint(0, VOCABULARY, (4, 17))
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
    return {
        "model": weights,
        "optimizer": optimizer.state_dict(),
        "model_args": {**SHAPE, "block_size": 16, "vocab_size": VOCABULARY, "dropout": 0.0},
        "iter_num": 3,
        "best_val_loss": torch.tensor(2.5),
        "config": {"learning_rate": 2e-3, "max_iters": 9, "lr_decay_iters": 9, "device": "cuda", "out_dir": "out"},
    }


def test_nanogpts_checkpoint_gives_its_weights_or_goes_on(tmp_path: Path) -> None:
    checkpoint = nanogpt_checkpoint()
    file = pickled(tmp_path / "out", checkpoint)

    fresh = read_initial(file.parent)  # its out_dir will do
    assert fresh.optimizer is None
    assert fresh.settings({"learning_rate": 1e-3}, {})["learning_rate"] == 1e-3

    initial = read_initial(file, resume=True)
    config = TrainConfig.parse(initial.settings(TINY.model_dump(), {"grad_clip": 0.5}))
    assert (config.learning_rate, config.max_iters, config.grad_clip) == (2e-3, 9, 0.5)
    assert (config.weight_decay, config.beta1, config.beta2) == (0.2, 0.8, 0.95), "of the optimizer, as in nanoGPT"
    assert config.device == "cpu", "the machine's settings stay this machine's"
    model = GPT(config, VOCABULARY)
    optimizer = FlatAdamW(model, config)
    initial.copy_into(optimizer, VOCABULARY)
    assert initial.optimizer is not None
    assert (initial.optimizer.step, optimizer.updates, initial.optimizer.best_val_loss) == (3, 3, 2.5)
    for number, (name, moment) in enumerate(optimizer.named(optimizer.second_moment)):
        assert torch.equal(moment, checkpoint["optimizer"]["state"][number]["exp_avg_sq"]), name
    with pytest.raises(ConfigError, match=r"max_iters = 3, but .* has made 3 steps; raise max_iters"):
        initial.require_steps_left(config.with_overrides({"max_iters": 3, "warmup_iters": 1}))


class Executed:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = pickled(tmp_path / "out", {**nanogpt_checkpoint(), "config": Executed()})
    with pytest.raises(ConfigError, match="without executing"):
        read_initial(file)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("init_from", "message"),
    [
        ("resume:", "names no checkpoint"),
        ("job:mine@best", "lies in a store"),
        ("resume:{gpt2}", "resume: goes on with nanoGPT's ckpt.pt"),
        ("{gpt2}", "has 1,100 tokens, the dataset 17"),
    ],
)
def test_the_command_line_refuses_before_the_first_step(
    gpt2: Path, data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], init_from: str, message: str
) -> None:
    start = f"init_from={init_from.format(gpt2=gpt2)}"
    assert main(["--data", str(data_folder), "--out", str(tmp_path), "--set", start, "fast_gemm=off"]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("checkpoints/step-*"))


def test_a_run_starts_from_weights_once_and_its_own_checkpoint_wins(
    tmp_path: Path, data_folder: Path, dataset: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, before = train_in(tmp_path / "first", dataset)
    source = tmp_path / "source"
    shutil.copytree(next((tmp_path / "first").glob("step-00000030")), source)
    command = ["--data", str(data_folder), "--out", str(tmp_path / "out"), "--json", "--set", f"init_from={source}"]
    command += ["max_iters=12", "warmup_iters=2", "fast_gemm=off", "device=cpu", "dropout=0", "learning_rate=1e-4"]
    monkeypatch.setenv("CRUCIBLE_STOP_AT_STEP", "4")
    assert main(command) == 75
    first = capsys.readouterr().err
    assert f"started from {source}" in first
    shown = next(float(line.rpartition(" ")[2]) for line in first.splitlines() if line.startswith("step 0:"))
    assert shown == pytest.approx(before.val_loss, abs=0.1), "the loss goes on where it was"
    shutil.rmtree(source)
    monkeypatch.delenv("CRUCIBLE_STOP_AT_STEP")
    assert main(command) == 0
    assert "resumed at step 4" in capsys.readouterr().err
    _, config = load_model(tmp_path / "out" / "checkpoints" / "step-00000012")
    assert (config.n_embd, config.block_size, config.init_from) == (16, 16, str(source))


def test_names_of_gpt2_are_those_of_the_hub() -> None:
    assert Source.parse("gpt2-xl") == Source("hf:openai-community/gpt2-xl", resume=False)
    assert Source.parse("resume:out/ckpt.pt") == Source("out/ckpt.pt", resume=True)
