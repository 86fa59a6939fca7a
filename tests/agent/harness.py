"""Runs attempts with the scripted workload in this process, and lets a test act on what happens."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crucible.agent.attempt import run_attempt
from crucible.agent.notices import Notice
from crucible.agent.plan import AttemptPlan, Scratch, WorkloadCommand
from crucible.agent.saving import SavePolicy
from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import Checkpoint
from crucible.checkpoints.restore import restore
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import Heartbeat, Launch, Outcome
from tests.agent.scripted import weights_after
from tests.faults.small_jobs import launched

SCRIPTED = Path(__file__).with_name("scripted.py")
LONG_ENOUGH = 120.0
"""Seconds that a test waits for something before it gives up."""


def scripted(**options: Any) -> list[str]:
    """The command line of the scripted workload."""
    return [sys.executable, "-S", "-E", str(SCRIPTED), json.dumps(options)]


@dataclass
class Recorder:
    """An observer that remembers everything, and calls `reactions[kind](message, details)` when an event comes."""

    reactions: dict[str, Callable[[str, dict[str, Any]], object]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    events: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    heartbeats: list[Heartbeat] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    on_step: Callable[[int], object] = lambda step: None

    def log(self, line: str) -> None:
        self.lines.append(line)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self.steps.append(step)
        self.on_step(step)

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        self.heartbeats.append(heartbeat)

    def event(self, kind: str, message: str, **details: Any) -> None:
        self.events.append((kind, message, details))
        if kind in self.reactions:
            self.reactions[kind](message, details)

    def messages(self, kind: str) -> list[str]:
        return [message for found, message, _ in self.events if found == kind]


class Bell:
    """A notice source that has a notice once it was rung."""

    def __init__(self) -> None:
        self.notice: Notice | None = None

    def ring(self, notice: Notice) -> None:
        self.notice = notice

    def poll(self) -> Notice | None:
        return self.notice


def plan(
    scratch: Path,
    command: Sequence[str] | Callable[[Scratch], Sequence[str]],
    launch: Launch | None = None,
    **fields: Any,
) -> AttemptPlan:
    """A plan that looks around and writes heartbeats often; `command` is the workload's, or what `prepare` is to do."""
    defaults: dict[str, Any] = {
        "save": SavePolicy(fixed_seconds=1.0),
        "look_seconds": 0.02,
        "heartbeat_seconds": 0.05,
        "cwd": scratch,
    }
    return AttemptPlan(
        prepare=lambda folder: WorkloadCommand(command(folder) if callable(command) else command),
        scratch=scratch / "scratch",
        launch=launch or Launch(number=1, pool="local", reason="test"),
        **defaults | fields,
    )


def run(job: Job, number: int, scratch: Path, observer: Recorder | None = None, **options: Any) -> Outcome:
    """Launch and run attempt `number` with the scripted workload; options that are fields of the plan go there."""
    fields = {name: options.pop(name) for name in list(options) if name in AttemptPlan.__dataclass_fields__}
    attempt = launched(job, number)
    return run_attempt(attempt, plan(scratch, scripted(**options), **fields), observer or Recorder())


def newest(job: Job, scratch: Path) -> tuple[Checkpoint, str] | None:
    """The newest commit and the weights in it, which must be those of its step."""
    found = restore(Checkpoints(job), scratch / "inspect")
    if found is None:
        return None
    weights = (found[1] / "weights.txt").read_text()
    assert weights == weights_after(found[0].step), f"the weights of step {found[0].step} are not what training gives"
    return found[0], weights


def in_background(attempt: Attempt, plan: AttemptPlan, observer: Recorder) -> tuple[threading.Thread, list[Any]]:
    """Run the attempt in a thread; the list gets its outcome or its exception."""
    ends: list[Any] = []

    def work() -> None:
        try:
            ends.append(run_attempt(attempt, plan, observer))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            ends.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, ends


def committed(job: Job, scratch: Path) -> int:
    found = newest(job, scratch)
    return found[0].step if found else 0


def stop(reason: str = "the machine goes", seconds: float | None = None, **fields: Any) -> Notice:
    return Notice("test", reason, None if seconds is None else time.time() + seconds, **fields)
