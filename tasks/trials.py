"""Trials in this process: attempts that need no flow run of their own, because the sweep's machine is the pool.

The agent runs in the task's thread and starts the workload itself. When this process dies, its workloads die with it
(see `crucible.parent_death_guard`), so whoever finds its claims on this machine
knows at once that the attempts are over.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from crucible.agent.attempt import run_attempt
from crucible.agent.notices import Notice
from crucible.agent.plan import AttemptPlan
from crucible.agent.sources import sources_of_this_machine
from crucible.container import usable_cpus
from crucible.home import crucible_home
from crucible.jobs.job import Job
from crucible.jobs.records import Claim, Heartbeat, Launch, Outcome, StopRequest
from crucible.local.processes import process_start
from crucible.supervision.launcher import Hint, Launcher, PoolSays
from tasks.nodes import gpus_here
from tasks.observing import emit
from tasks.training import WORKER_GRACE_SECONDS, heartbeat_seconds, prepare, save_policy


class SweepHalted(Exception):
    """The sweep stops: nothing new is to be launched, and nobody is to be waited for."""


class Halt:
    """Whether the sweep stops, for the threads of its trials."""

    def __init__(self) -> None:
        self.launching = threading.Event()
        """Set: no attempt is launched any more."""
        self.waiting = threading.Event()
        """Set: attempts on other machines are left to themselves."""

    def sleep(self, seconds: float) -> None:
        """`time.sleep` for supervisors. Raises `SweepHalted` as soon as waiting is over."""
        if self.waiting.wait(seconds):
            raise SweepHalted


class Halting:
    """A launcher that launches until the sweep stops; the decision to launch stands, for whoever continues."""

    def __init__(self, launcher: Launcher, halt: Halt) -> None:
        self._launcher, self._halt = launcher, halt

    def launch(self, job: Job, launch: Launch) -> None:
        if self._halt.launching.is_set():
            raise SweepHalted
        self._launcher.launch(job, launch)

    def hint(self, job: Job, launch: Launch) -> Hint:
        return self._launcher.hint(job, launch)

    def retire(self, job: Job, launch: Launch, outcome: Outcome) -> None:
        self._launcher.retire(job, launch, outcome)


class Machine:
    """This machine's cores and GPUs, shared by so many trials at a time."""

    def __init__(self, parallelism: int, threads: int | None) -> None:
        self._threads = threads
        self._gpus = gpus_here()
        self._alone = parallelism == 1
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(parallelism):
            self._slots.put(slot)

    @property
    def gpus_per_trial(self) -> int:
        """All of them for a trial that has the machine to itself, else one."""
        return len(self._gpus) if self._alone else min(1, len(self._gpus))

    @contextmanager
    def share(self) -> Iterator[Mapping[str, str]]:
        """The environment of one trial: its threads and, where there are GPUs, its GPU."""
        slot = self._slots.get()
        try:
            shared = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self._threads)) if self._threads else {}
            if len(self._gpus) > 1 and not self._alone:
                shared["CUDA_VISIBLE_DEVICES"] = self._gpus[slot % len(self._gpus)]
            yield shared
        finally:
            self._slots.put(slot)


def threads_per_trial(parallelism: int) -> int:
    """Cores / trials at a time: more threads than cores make all of them slower."""
    return max(1, usable_cpus() // parallelism)


@dataclass(frozen=True)
class AskedToStop:
    """A source of notices: a person wants the flow run around the attempt to stop."""

    requested: Callable[[], StopRequest | None]

    def poll(self) -> Notice | None:
        request = self.requested()
        return None if request is None else Notice("person", request.reason, end_reason=request.end_reason)


class HereLauncher:
    """Runs an attempt in the calling thread: `launch` returns when it has ended.

    `stop_requested`: whether a person wants it to stop, for a supervisor that cannot look meanwhile. In the main thread
    a SIGTERM also lets it save first; `launch` then passes Prefect's `TerminationSignal` on.
    """

    def __init__(self, machine: Machine, stop_requested: Callable[[], StopRequest | None] = lambda: None) -> None:
        self._machine, self._stop_requested = machine, stop_requested

    def launch(self, job: Job, launch: Launch) -> None:
        spec, signalled = job.read_spec(), threading.Event()

        def on_signal() -> Notice:
            signalled.set()
            return Notice("signal", "the flow run was asked to stop (SIGTERM)", time.time() + WORKER_GRACE_SECONDS)

        with self._machine.share() as shared:
            plan = AttemptPlan(
                prepare=lambda scratch: prepare(job, spec, scratch, gpus=self._machine.gpus_per_trial),
                scratch=crucible_home() / "scratch",
                launch=launch,
                save=save_policy(spec, launch),
                sources=(*sources_of_this_machine(), AskedToStop(self._stop_requested)),
                environment={**os.environ, **shared},
                claim=lambda: Claim(
                    number=launch.number,
                    process_start=process_start(os.getpid()),
                    flow_run_id=str(flow_run.id or ""),
                    environment={"cpus": usable_cpus()},
                ),
                total_steps=spec.total_steps,
                cwd=Path.cwd(),
                interrupts=(TerminationSignal,),  # not in the thread of a trial, which its sweep asks to stop
                on_interrupt=on_signal,
                heartbeat_seconds=heartbeat_seconds(job.root),
            )
            run_attempt(job.attempt(launch.number), plan, TrialObserver(job, launch.number))
        if signalled.is_set():
            raise TerminationSignal(signal.SIGTERM)

    def hint(self, job: Job, launch: Launch) -> Hint:
        """Asked after `launch` has returned or refused: an attempt of this process is over by then."""
        claim = job.attempt(launch.number).read_claim()
        if claim is None or claim.host != socket.gethostname():
            return Hint(PoolSays.UNKNOWN)
        if claim.pid != os.getpid() and _runs(claim):
            return Hint(PoolSays.ALIVE)
        return Hint(PoolSays.ENDED, f"process {claim.pid} of this machine is gone")

    def retire(self, job: Job, launch: Launch, outcome: Outcome) -> None:
        """Nothing is left: the workload went with its agent."""


def _runs(claim: Claim) -> bool:
    """Whether the claiming process still runs; another one may have got its number since."""
    try:
        process = psutil.Process(claim.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if claim.process_start is not None:
            return process_start(claim.pid) == claim.process_start
        return process.create_time() <= claim.claimed_at.timestamp()  # a claim of an earlier version
    except psutil.NoSuchProcess:
        return False


class TrialObserver:
    """Shows of a trial's attempt what a person should know; the rest is in its records."""

    def __init__(self, job: Job, number: int) -> None:
        self._job, self._number = job, number
        self._logger = _logger()

    def log(self, line: str) -> None:
        self._logger.debug(line)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Metrics reach people through the leaderboard."""

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        """Progress reaches people through the leaderboard."""

    def event(self, kind: str, message: str, **details: Any) -> None:
        if kind == "last-lines":
            self._logger.error("the last lines of the workload:\n%s", message)
        elif kind in ("notice", "damaged", "trouble"):
            self._logger.warning(message)
            emit(kind, self._job.job_id, message, attempt=self._number)


class TrialListener:
    """Logs every move of a trial in its task run's log."""

    def __init__(self) -> None:
        self._logger = _logger()

    def changed(self, job: Job, message: str) -> None:
        self._logger.info(message)

    def watched(self, job: Job, heartbeat: Heartbeat | None) -> None:
        """Progress reaches people through the leaderboard."""


def _logger() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    return get_run_logger() if flow_run.id else logging.getLogger("crucible")
