"""Runs an example in a process that is forked from one which has imported torch already: imports cost seconds each."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PRELOAD = [
    *("torch", "torch._dynamo", "numpy", "crucible.workload", "tests.examples.children"),
    # Where they are installed; what is missing is passed over.
    *("lightning", "torchdata.stateful_dataloader", "transformers.trainer", "transformers.models.bert.modeling_bert"),
]


@dataclass(frozen=True)
class Kill:
    """A signal that the process gets right after a save."""

    kind: signal.Signals
    after_saves: int


@dataclass(frozen=True)
class Start:
    """What to run, and where."""

    script: Path
    arguments: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    kill: Kill | None = None


def run(start: Start) -> None:
    """The main function of the process."""
    import torch

    torch.set_num_threads(1)
    os.chdir(start.folder)
    os.environ.update(start.environment)
    output = os.open(start.folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    if start.kill is not None:
        _kill_after(start.kill)
    sys.argv = [str(start.script), *start.arguments]
    runpy.run_path(str(start.script), run_name="__main__")


def _kill_after(kill: Kill) -> None:
    import torch

    from crucible.workload.session import Session

    saves = 0

    def count() -> None:
        nonlocal saves
        saves += 1
        if saves == kill.after_saves:
            os.kill(os.getpid(), kill.kind)

    save_session, save_file = Session._save, torch.save

    def save(session: Session, step: int, must: bool) -> None:
        save_session(session, step, must)
        count()

    def save_by_script(*arguments: object) -> None:
        save_file(*arguments)
        count()

    Session._save = save  # type: ignore[method-assign]
    torch.save = save_by_script
