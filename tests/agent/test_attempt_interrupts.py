"""Exceptions raised into the thread that runs an attempt, at any point: the outcome is never lost."""

from __future__ import annotations

import itertools
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from crucible.agent.attempt import _AttemptRun, run_attempt
from crucible.jobs.job import Job
from crucible.jobs.records import Claim, EndReason
from crucible.store import Store
from tests.agent.harness import Recorder, committed, plan, scripted
from tests.faults.faulty_store import FaultyStore
from tests.faults.small_jobs import launched, new_job


class Interrupt(Exception):
    """As a Ctrl-C; one that came out of an attempt as `KeyboardInterrupt` would end the whole session of pytest."""


@pytest.fixture(autouse=True)
def _only_attempts_are_interrupted() -> Iterator[None]:
    """A signal may arrive when the attempt that it was meant for has just returned."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code is _AttemptRun.wait.__code__ and not frame.f_locals["self"]._over.is_set():
                raise Interrupt
            frame = frame.f_back

    before = signal.signal(signal.SIGINT, interrupt)
    yield
    signal.signal(signal.SIGINT, before)


class RaisesAt:
    """Interrupts the main thread when the attempt touches the store or the observer for the n-th time, and maybe again.

    The watching threads touch the store whenever their time comes: they do not count.
    """

    def __init__(self, touches: set[int]) -> None:
        self.touches, self.count, self.raised = touches, itertools.count(), 0
        self.armed = True

    def __call__(self, *_about: Any) -> None:
        counts = threading.current_thread().name in ("attempt", "restoring", "uploads")
        if self.armed and counts and next(self.count) in self.touches:
            self.raised += 1
            signal.raise_signal(signal.SIGINT)


class Touchy(Recorder):
    """An observer in which an interrupt can strike."""

    def __init__(self, touch: RaisesAt) -> None:
        super().__init__()
        self.touch = touch

    def event(self, kind: str, message: str, **details: Any) -> None:
        self.touch()
        super().event(kind, message, **details)
        self.touch()


def test_interrupts_at_any_point_never_lose_the_outcome(store: Store, tmp_path: Path) -> None:
    """Ctrl-C, or Prefect's SIGTERM, comes as an exception in the main thread, whatever the attempt is at; or two."""
    chance = random.Random(5)
    for point in itertools.count(0, 2):
        job = new_job(store, f"job-{point}")
        launched(job, 1)
        touch = RaisesAt({point} | ({point + chance.randrange(1, 4)} if point % 4 else set()))
        shaky = Job(FaultyStore(store, touch, touch), job.job_id)
        command = scripted(steps=4, every=2)
        claim = Claim(number=1)
        planned = plan(tmp_path, command, claim=lambda claim=claim: claim, interrupts=(Interrupt,))
        outcome = run_attempt(shaky.attempt(1), planned, Touchy(touch))
        touch.armed = False
        standing = job.attempt(1).read_outcome()
        assert standing == outcome, f"interrupt at touch {point}"
        assert outcome.end_reason in (EndReason.INTERRUPTED, EndReason.COMPLETED)
        assert outcome.committed_step == committed(job, tmp_path / job.job_id)
        if not touch.raised:
            assert point > 25
            assert outcome.end_reason is EndReason.COMPLETED
            return


def test_interrupts_at_random_moments_never_lose_the_outcome(store: Store, tmp_path: Path) -> None:
    chance = random.Random(17)
    for round_number in range(8):
        job = new_job(store, f"job-{round_number}")
        launched(job, 1)
        over = threading.Event()
        moments = [chance.random() * 0.35 for _ in range(1 + round_number % 3)]

        def strike(moments: list[float] = moments, over: threading.Event = over) -> None:
            for moment in moments:
                if over.wait(moment):
                    return
                signal.raise_signal(signal.SIGINT)

        striker = threading.Thread(target=strike)
        began = threading.Event()
        observer = Recorder(reactions={"claimed": lambda message, details, began=began: began.set()})

        def await_claim(began: threading.Event = began, striker: threading.Thread = striker) -> None:
            began.wait()
            striker.start()

        threading.Thread(target=await_claim).start()
        try:
            planned = plan(tmp_path, scripted(steps=10, every=3, seconds=0.01), interrupts=(Interrupt,))
            outcome = run_attempt(job.attempt(1), planned, observer)
        finally:
            over.set()
            striker.join()
        assert job.attempt(1).read_outcome() == outcome, f"round {round_number}"
        assert outcome.committed_step == committed(job, tmp_path / job.job_id)
