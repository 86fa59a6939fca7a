"""What has to be known to run an attempt on this machine, and the environment that its workload finds."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from crucible.agent.nodes import Nodes
from crucible.agent.notices import Notice, NoticeSource
from crucible.agent.saving import SavePolicy
from crucible.contract import METRICS_FILE, StopReason, Variable
from crucible.jobs.job import Attempt
from crucible.jobs.records import Claim, Launch, Rendezvous
from crucible.store.base import local_disk


@dataclass(frozen=True)
class Scratch:
    """The attempt's folder on this machine; nothing in it outlives the attempt."""

    root: Path

    @classmethod
    def of(cls, parent: Path, attempt: Attempt) -> Scratch:
        """Jobs of one name in two stores get two folders."""
        job = attempt.job
        place = f"{job.job_id}-{hashlib.sha256(job.root.uri.encode()).hexdigest()[:8]}"
        return cls(parent / place / f"attempt-{attempt.number:04d}")

    @contextmanager
    def own(self) -> Iterator[None]:
        """Make the folder, and remove it at the end; remove those that killed attempts of this job left here.

        A lock says whether the process of an attempt still lives: one that is only paused keeps its files. Raises
        `LocalDiskError`.
        """
        with _locked(self._lock):
            for folder in self.root.parent.glob("attempt-*"):
                if folder.is_dir() and folder != self.root:
                    Scratch(folder).remove_if_abandoned()
            _remove(self.root)
            try:
                with local_disk(self.root):
                    self.checkpoints.mkdir(parents=True)
                yield
            finally:
                _remove(self.root)

    def is_abandoned(self) -> bool:
        """Whether the process of the attempt is gone. Raises `LocalDiskError`."""
        with _locked(self._lock) as free:
            return free

    def remove_if_abandoned(self) -> bool:
        """Remove the folder unless its process lives; whether that was done. Raises `LocalDiskError`."""
        with _locked(self._lock) as free:
            if free:
                _remove(self.root)
            return free

    @property
    def _lock(self) -> Path:
        return self.root.with_name(f"{self.root.name}.lock")

    def write_stop_reason(self, notice: Notice) -> None:
        """Say why the workload is asked to stop; it stops without that as well. Raises OSError."""
        self.stop_reason_file.parent.mkdir(parents=True, exist_ok=True)
        StopReason(notice.source, notice.reason, notice.deadline).write(self.stop_reason_file)

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def resume(self) -> Path:
        """Where the checkpoint that the attempt begins with lies, if there is one."""
        return self.root / "resume"

    @property
    def metrics_file(self) -> Path:
        return self.root / METRICS_FILE

    @property
    def control_file(self) -> Path:
        return self.root / "control.json"

    @property
    def stop_reason_file(self) -> Path:
        return self.root / "stop-reason.json"


@dataclass(frozen=True)
class WorkloadCommand:
    """What to start on this machine once it is ready."""

    arguments: Sequence[str]
    """The command line, program first."""
    cwd: Path | None = None
    """The working directory; None: the plan's."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables besides those of the plan; they win over them, and the contract's own win over both."""


@dataclass
class AttemptPlan:
    """How to run an attempt here."""

    prepare: Callable[[Scratch], WorkloadCommand]
    """Gets the machine ready (datasets, code, config files) and returns what to start."""
    scratch: Path
    launch: Launch
    save: SavePolicy = field(default_factory=SavePolicy)
    sources: Sequence[NoticeSource] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    cwd: Path = field(default_factory=Path.cwd)
    claim: Callable[[], Claim] | None = None
    """The first node claims the attempt with it; a further node reports its machine and price from it."""
    current_price: Callable[[], float | None] | None = None
    """USD per hour of this machine now, None where unknown; asked every ten minutes. Without it the price is fixed."""
    machine_problem: Callable[[], str | None] = lambda: None
    """Why this machine is not fit to train, asked before anything is downloaded to it; None if it is fit."""
    sample_machine: Callable[[], Mapping[str, float]] | None = None
    """How busy the machine is, for the metrics."""
    sample_seconds: float = 10.0
    total_steps: int | None = None
    interrupts: tuple[type[BaseException], ...] = (KeyboardInterrupt,)
    """Exceptions that mean "stop", raised in the calling thread by whoever handles signals there."""
    on_interrupt: Callable[[], Notice] = lambda: Notice("signal", "this process was asked to stop")
    explain: Callable[[], Notice | None] = lambda: None
    """Why the attempt was stopped, where there was only a signal; asked once, at its end. May take some seconds."""
    heartbeat_seconds: float = 5.0
    look_seconds: float = 1.0
    nodes: Nodes = field(default_factory=Nodes)
    """The machines and processes that train together."""

    def workload_environment(
        self,
        job_id: str,
        scratch: Scratch,
        resume_from: Path | None,
        own: Mapping[str, str],
        rendezvous: Rendezvous | None = None,
    ) -> dict[str, str]:
        """Everything the contract between agent and workload says about files and names, besides the machine's
        variables and the workload's `own`."""
        contract: dict[str, str] = {
            Variable.JOB_ID: job_id,
            Variable.ATTEMPT: str(self.launch.number),
            Variable.CHECKPOINT_DIR: str(scratch.checkpoints),
            Variable.METRICS_FILE: str(scratch.metrics_file),
            Variable.CONTROL_FILE: str(scratch.control_file),
            Variable.STOP_REASON_FILE: str(scratch.stop_reason_file),
        }
        if resume_from:
            contract[Variable.RESUME_FROM] = str(resume_from)
        if self.launch.stop_at_step is not None:
            contract[Variable.STOP_AT_STEP] = str(self.launch.stop_at_step)
        contract |= self.nodes.environment(rendezvous)
        machine = {key: value for key, value in self.environment.items() if key != Variable.RESUME_FROM}
        return {**machine, **own, **contract}


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock, and remove its file at the end; False when another process or thread has it, or may have it."""
    with local_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
        path.unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    with suppress(OSError):  # an interrupt at the wrong moment makes rmtree close one descriptor twice
        shutil.rmtree(folder, ignore_errors=True)
