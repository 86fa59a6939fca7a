"""`resume_or_start` under torch.distributed, with a StatefulDataLoader and with Accelerate: exact after a kill."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from crucible import workload
from crucible.contract import EXIT_SAVED, Variable, finished_folders
from crucible.errors import ConfigError
from crucible.workload.folders import MODEL

STEPS = 10
ALONE = [Variable.CHECKPOINT_DIR, Variable.RESUME_FROM, Variable.METRICS_FILE, Variable.CONTROL_FILE]


def train_on_rank(rank: int, folder: Path, number: int, stop_rank: int | None, fails_at: int | None = None) -> None:
    """One of two processes that average their gradients; `stop_rank` gets SIGTERM in its fifth step.

    With `fails_at`, every step is saved, but that one cannot be at first.
    """
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.chdir(folder)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{number}", rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1))
    for parameter in model.parameters():
        dist.broadcast(parameter.data, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    run = workload.resume_or_start(model, optimizer, every_seconds=0.0 if fails_at else 3600)
    for step in run.steps(STEPS):
        if step == 5 and rank == stop_rank:
            os.kill(os.getpid(), signal.SIGTERM)
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()  # other data and other dropout in each process
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        optimizer.step()
        in_the_way = run.folder / f"step-{step:08d}.partial"
        if step == fails_at and rank == 0:
            in_the_way.write_text("")
        run.maybe_save(step)
        if step == fails_at and rank == 0:
            in_the_way.unlink()
    dist.destroy_process_group()


def start(folder: Path, number: int, stop_rank: int | None, fails_at: int | None = None) -> list[int | None]:
    """The exit codes of both processes."""
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "torch.distributed", "crucible.workload", "tests.workload.test_distributed"]
    )
    processes = [
        context.Process(target=train_on_rank, args=(rank, folder, number, stop_rank, fails_at)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=240)
    return [process.exitcode for process in processes]


def newest(folder: Path) -> Path:
    return finished_folders(folder / "checkpoints")[-1]


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)


def test_two_processes_stop_together_and_end_with_the_same_bits(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert start(whole, 0, stop_rank=None) == [0, 0]
    assert start(part, 0, stop_rank=1) == [EXIT_SAVED, EXIT_SAVED], "a signal to one stops both"
    assert newest(part).name == "step-00000005"
    assert start(part, 1, stop_rank=None) == [0, 0]
    assert newest(part).name == newest(whole).name == f"step-{STEPS:08d}"
    assert (newest(part) / MODEL).read_bytes() == (newest(whole) / MODEL).read_bytes()


def test_two_processes_save_again_together_what_could_not_be_saved(tmp_path: Path) -> None:
    assert start(tmp_path / "run", 0, stop_rank=None, fails_at=STEPS) == [0, 0]
    assert newest(tmp_path / "run").name == f"step-{STEPS:08d}"


def test_lightning_in_several_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", reason="pip install 'crucible[examples]'")
    from crucible.workload.lightning import CrucibleCallback

    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it
    with pytest.raises(ConfigError, match="of one process, not of 2"):
        _ = CrucibleCallback(tmp_path).resume_from


class Killed(Exception):
    """The process ends without another word."""


class Augmented(torch.utils.data.Dataset[tuple[torch.Tensor]]):
    """Rows that are changed at random as they are read, from the generator that also draws the dropout."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> tuple[torch.Tensor]:
        return (torch.full((1,), float(index)) + torch.rand(1),)


def train_with_loader(folder: Path, kind: str, kill_at: int | None = None) -> list[float]:
    """Over two epochs of a shuffled loader; returns the sum of each batch's inputs, in their order."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    torch.manual_seed(0)
    inputs = torch.arange(48.0)[:, None]
    model: torch.nn.Module = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    seen = []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    loader: Any = StatefulDataLoader(torch.utils.data.TensorDataset(inputs), batch_size=8, shuffle=True)
    if kind != "torchdata":
        if kind != "accelerate":
            own = torch.Generator().manual_seed(7) if kind == "accelerate, own generator" else None
            loader = torch.utils.data.DataLoader(Augmented(), batch_size=8, shuffle=True, generator=own)
        accelerate = pytest.importorskip("accelerate", reason="pip install 'crucible[examples]'")
        from crucible.workload.accelerate import resume_or_start

        loading = accelerate.DataLoaderConfiguration(use_stateful_dataloader=kind == "accelerate")
        accelerator = accelerate.Accelerator(cpu=True, dataloader_config=loading)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        run = resume_or_start(accelerator, folder=folder, every_seconds=1e-9)
    else:
        run = workload.resume_or_start(model, optimizer, loader, folder=folder, every_seconds=1e-9)
    batches = iter(loader)
    for step in run.steps(12):
        batch = next(batches, None)
        if batch is None:  # the next epoch
            batches = iter(loader)
            batch = next(batches)
        seen.append(float(batch[0].sum()))
        optimizer.zero_grad()
        model(batch[0]).square().mean().backward()
        optimizer.step()
        run.maybe_save(step)
        if step == kill_at:
            run.close()
            raise Killed(seen)
    return seen


@pytest.mark.parametrize("kind", ["torchdata", "accelerate", "accelerate, plain", "accelerate, own generator"])
@pytest.mark.parametrize("kill_at", [4, 6, 11], ids=["in an epoch", "at its end", "before the last batch"])
def test_the_position_in_the_data_is_saved(tmp_path: Path, kind: str, kill_at: int) -> None:
    pytest.importorskip("torchdata", reason="pip install 'crucible[examples]'")
    whole = train_with_loader(tmp_path / "whole", kind)
    with pytest.raises(Killed) as killed:
        train_with_loader(tmp_path / "part", kind, kill_at=kill_at)
    assert killed.value.args[0] + train_with_loader(tmp_path / "part", kind) == whole
    ends = [finished_folders(tmp_path / name)[-1] / MODEL for name in ("whole", "part")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
