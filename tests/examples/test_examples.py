"""Every example is killed and resumed: its loss goes down, and where it says so its resume is exact."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
import shutil
import signal
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from crucible.contract import EXIT_SAVED, Control, Variable, finished_folders
from crucible.script_config import CheckpointFiles, MetricsSource
from tests.examples.children import PRELOAD, Kill, Start, run

EXAMPLES = Path(__file__).parents[2] / "examples"

EXACT = {
    "resnet": "--steps 20 --batch 16 --width 4 --images 64 --eval-every 10",
    "masked_lm": "--steps 24 --batch 8 --width 16 --layers 1 --eval-every 8",
    "diffusion": "--steps 20 --batch 8 --width 8 --levels 4",
    "mamba": "--steps 20 --batch 8 --width 8 --layers 1 --length 8",
}
"""Small enough that a run takes a fraction of a second."""
SLOW_TO_LEARN = ("masked_lm",)
"""Whose loss does not fall within so few steps."""
WITH_PACKAGES = {
    "lightning_module": ("--steps 60 --batch 16 --width 16 --rows 160", ("lightning", "torchdata")),
    "huggingface_trainer": ("--steps 20 --batch 4 --width 16 --layers 1 --sentences 40", ("accelerate",)),
}
"""And what they need besides: the extra `examples`."""


def execute(start: Start) -> int | None:
    """Run an example to its end; returns its exit code, negative for a signal."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    process = context.Process(target=run, args=(start,))
    process.start()
    process.join(timeout=300)
    return process.exitcode


def by_agent(start: Start, checkpoint_seconds: float) -> Start:
    """As an agent starts it, from the newest checkpoint on."""
    control = start.folder / "control.json"
    Control(checkpoint_seconds).write(control)
    checkpoints = start.folder / "checkpoints"
    found = finished_folders(checkpoints)
    environment = {
        Variable.CHECKPOINT_DIR: str(checkpoints),
        Variable.METRICS_FILE: str(start.folder / "metrics.jsonl"),
        Variable.CONTROL_FILE: str(control),
        **({Variable.RESUME_FROM: str(found[-1])} if found else {}),
    }
    return replace(start, environment={str(name): value for name, value in environment.items()})


def weights(checkpoint: Path) -> dict[str, str]:
    """The sha256 of every tensor of the model."""
    import torch
    from safetensors.torch import load_file

    file = checkpoint / "model.safetensors"
    if file.exists():
        tensors = load_file(file)
    else:
        tensors = torch.load(checkpoint / "lightning.ckpt", weights_only=True)["state_dict"]
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}


def goes_down(losses: list[float]) -> bool:
    quarter = max(1, len(losses) // 4)
    return statistics.mean(losses[-quarter:]) < statistics.mean(losses[:quarter])


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_example_ends_with_the_same_bits(tmp_path: Path, name: str) -> None:
    require_exact(tmp_path, name, EXACT[name])


@pytest.mark.parametrize("name", WITH_PACKAGES)
def test_an_exact_example_of_another_trainer_ends_with_the_same_bits(tmp_path: Path, name: str) -> None:
    arguments, packages = WITH_PACKAGES[name]
    for package in packages:
        pytest.importorskip(package, reason="pip install 'crucible[examples]'")
    require_exact(tmp_path, name, arguments)


def require_exact(tmp_path: Path, name: str, arguments: str) -> None:
    """Kill the example, stop it, let it end, and compare its weights with those of an undisturbed run."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
    start = Start(EXAMPLES / name / "train.py", tuple(arguments.split()), part, {})
    for kind, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, EXIT_SAVED)):
        killed = replace(by_agent(start, checkpoint_seconds=0), kill=Kill(kind, after_saves=5))
        assert execute(killed) == code, (part / "output.txt").read_text()
    assert execute(by_agent(start, checkpoint_seconds=0)) == 0, (part / "output.txt").read_text()
    assert execute(by_agent(replace(start, folder=whole), checkpoint_seconds=3600)) == 0

    ends = [finished_folders(folder / "checkpoints")[-1] for folder in (part, whole)]
    assert ends[0].name == ends[1].name
    assert weights(ends[0]) == weights(ends[1])
    if name not in SLOW_TO_LEARN:
        assert goes_down(train_losses(whole))


def train_losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [line["train_loss"] for line in lines if "train_loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_TO_LEARN)
def test_an_example_that_is_slow_to_learn_learns_in_its_own_size(tmp_path: Path, name: str) -> None:
    assert execute(by_agent(Start(EXAMPLES / name / "train.py", (), tmp_path, {}), checkpoint_seconds=3600)) == 0
    losses = train_losses(tmp_path)
    assert statistics.mean(losses[-len(losses) // 4 :]) < 0.6 * losses[0]


def test_a_gpt2_of_transformers_is_fine_tuned_and_resumes_exactly(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="pip install 'crucible[examples]'")
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
    start = Start(EXAMPLES / "gpt2_finetuning" / "train.py", ("--steps", "15", "--batch", "4"), whole, {})
    assert execute(by_agent(start, checkpoint_seconds=3600)) == 0, (whole / "output.txt").read_text()
    shutil.copytree(whole / "gpt2-tiny", part / "gpt2-tiny")  # making it again takes seconds
    stopped = by_agent(replace(start, folder=part), checkpoint_seconds=3600)
    environment = {**stopped.environment, str(Variable.STOP_AT_STEP): "7"}
    assert execute(replace(stopped, environment=environment)) == EXIT_SAVED
    shutil.rmtree(part / "gpt2-tiny")  # the job's own checkpoint is all that it needs from here on
    assert execute(by_agent(replace(start, folder=part), checkpoint_seconds=3600)) == 0

    ends = [finished_folders(folder / "checkpoints")[-1] for folder in (part, whole)]
    assert weights(ends[0]) == weights(ends[1])
    assert goes_down(train_losses(whole))
    printed = (part / "output.txt").read_text()
    assert "started from gpt2-tiny" in printed
    assert "resumed at step 7" in printed


def test_a_script_in_the_manner_of_nanogpt_resumes_from_its_one_file(tmp_path: Path) -> None:
    arguments = (
        "--max_iters=40 --eval_interval=10 --eval_iters=1 --log_interval=1 --n_layer=1 --n_embd=16 --block_size=16"
    )
    start = Start(EXAMPLES / "nanogpt_style" / "train.py", (*arguments.split(), "--batch_size=8"), tmp_path, {})
    assert execute(replace(start, kill=Kill(signal.SIGKILL, after_saves=1))) == -signal.SIGKILL
    resumed = replace(start, arguments=(*start.arguments, "--init_from=resume"))
    assert execute(replace(resumed, kill=Kill(signal.SIGTERM, after_saves=2))) == -signal.SIGTERM
    assert execute(resumed) == 0
    printed = (tmp_path / "output.txt").read_text()
    assert re.findall(r"resuming from out at iteration (\d+)", printed) == ["10", "20"]
    losses = {int(step): float(loss) for step, loss in re.findall(r"iter (\d+): loss ([\d.]+)", printed)}
    assert sorted(losses) == list(range(40))
    assert goes_down([losses[step] for step in sorted(losses)])


def test_data_that_is_processed_already_is_not_processed_again(tmp_path: Path) -> None:
    start = Start(EXAMPLES / "process_data" / "process.py", ("--files", "4"), tmp_path, {})
    assert execute(start) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "cleaned").iterdir()}
    assert sorted(before) == [f"{number:04d}.jsonl" for number in range(4)]
    (tmp_path / "cleaned" / "0002.jsonl").unlink()
    (tmp_path / "cleaned" / "0003.partial").write_text("a worker was killed here")
    kept = (tmp_path / "cleaned" / "0001.jsonl").stat().st_mtime_ns
    assert execute(start) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "cleaned").glob("*.jsonl")} == before
    assert (tmp_path / "cleaned" / "0001.jsonl").stat().st_mtime_ns == kept
    assert "1 of 4 files are left" in (tmp_path / "output.txt").read_text()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_the_settings_of_every_example_are_valid(path: Path) -> None:
    settings = yaml.safe_load(path.read_text())
    script = Path(path.parent, settings["command"].split()[1])
    assert script.is_file()
    known = set(re.findall(r'"(--[a-z-]+)"', script.read_text()))
    known |= {f"--{name}" for name in re.findall(r"^([a-z_]+) = ", script.read_text(), re.M)}
    assert {option.partition("=")[0] for option in settings["command"].split() if option.startswith("--")} <= known
    if "checkpoint" in settings:
        CheckpointFiles.model_validate(settings["checkpoint"])
    if "metrics" in settings:
        MetricsSource.model_validate(settings["metrics"])
    assert (path.parent / "README.md").is_file()


def test_every_readme_says_what_its_test_shows_about_its_resume() -> None:
    exact = {*EXACT, *WITH_PACKAGES, "gpt2_finetuning", "process_data"}
    for folder in (path.parent for path in EXAMPLES.glob("*/crucible.yaml")):
        said = re.search(r"^\*\*Resume: (not )?exact", (folder / "README.md").read_text(), re.MULTILINE)
        assert said is not None, folder.name
        assert (said[1] is None) == (folder.name in exact), folder.name
        assert (folder / "gpu.yaml").exists() or (folder / "large.yaml").exists(), folder.name
