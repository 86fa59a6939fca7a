"""One attempt whose store fails, hangs or stays away."""

from __future__ import annotations

import itertools
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import crucible.agent.attempt as attempt_module
from crucible.agent.attempt import run_attempt
from crucible.agent.notices import Notice
from crucible.errors import StoreError, StoreUnavailable
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason
from crucible.store import store_at
from tests.agent.harness import LONG_ENOUGH, Bell, Recorder, committed, newest, plan, run, scripted, stop
from tests.agent.scripted import weights_after
from tests.faults.faulty_store import FaultyStore
from tests.faults.s3_proxy import S3Proxy
from tests.faults.small_jobs import launched, new_job
from tests.waiting import until


class Outage:
    """The store is away while `on`; remembers whether it was asked."""

    def __init__(self) -> None:
        self.on = False
        self.asked = 0

    def __call__(self, operation: str, key: str) -> None:
        if self.on:
            self.asked += 1
            raise StoreUnavailable("connection refused")


def test_training_goes_on_while_the_store_is_away(job: Job, tmp_path: Path) -> None:
    outage = Outage()

    def weather(step: int) -> None:
        if step == 7:
            outage.on = True
        if step == 31:
            assert outage.asked > 3
            outage.on = False

    launched(job, 1)
    frail = Job(FaultyStore(job.root, outage), "job")
    observer = Recorder(on_step=weather)
    command = scripted(steps=40, every=5, seconds=0.05)
    outcome = run_attempt(frail.attempt(1), plan(tmp_path, command), observer)
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.COMPLETED, 40)
    assert newest(job, tmp_path)[1] == weights_after(40)  # type: ignore[index]
    assert any("store" in n.source for n in outcome.notifications), "the trouble is on record"
    assert [json.loads(line)["step"] for line in job.attempt(1).metrics()] == list(range(1, 41))


def test_training_goes_on_while_s3_is_away(s3_place: Any, s3_endpoint: str, tmp_path: Path) -> None:
    """The same over HTTP, with refused connections, server errors and expired credentials."""
    with S3Proxy(s3_endpoint) as proxy:
        store = store_at(s3_place.uri, **s3_place.options | {"endpoint_url": proxy.url})
        job = new_job(store)
        weather = {
            6: proxy.refuse,
            12: proxy.heal,
            18: lambda: proxy.answer(403, "ExpiredToken"),
            24: lambda: proxy.answer(503, "SlowDown", times=6),
        }
        observer = Recorder(on_step=lambda step: weather.get(step, lambda: None)())
        outcome = run(job, 1, tmp_path, observer, steps=30, every=3, seconds=0.1)
        assert (outcome.end_reason, outcome.committed_step) == (EndReason.COMPLETED, 30)
        assert newest(job, tmp_path)[1] == weights_after(30)  # type: ignore[index]
        assert any(n.source == "store" for n in outcome.notifications)


def test_a_store_that_never_comes_back_leaves_the_last_commit(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "FINAL_UPLOAD_SECONDS", 0.5)
    monkeypatch.setattr(attempt_module, "RECORD_SECONDS", 0.5)
    outage = Outage()

    def weather(_message: str, details: dict[str, Any]) -> None:
        outage.on = details["step"] >= 5

    launched(job, 1)
    frail = Job(FaultyStore(job.root, outage), "job")
    observer = Recorder(reactions={"commit": weather})
    with pytest.raises(StoreError, match="connection refused"):
        run_attempt(frail.attempt(1), plan(tmp_path, scripted(steps=20, every=5, seconds=0.03)), observer)
    assert job.attempt(1).read_outcome() is None
    assert committed(job, tmp_path) >= 5
    assert run(job, 2, tmp_path, steps=20).end_reason is EndReason.COMPLETED


def test_a_job_is_not_done_before_its_last_checkpoint_is_in_the_store(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "FINAL_UPLOAD_SECONDS", 0.5)

    def refuse(operation: str, key: str) -> None:
        if operation == "upload" and "step-00000020" in key:
            raise StoreUnavailable("quota exceeded")

    launched(job, 1)
    frail = Job(FaultyStore(job.root, refuse), "job")
    outcome = run_attempt(frail.attempt(1), plan(tmp_path, scripted(steps=20, every=20)), Recorder())
    assert outcome.end_reason is EndReason.INTERRUPTED
    assert "quota exceeded" in outcome.message
    assert job.attempt(1).read_outcome() == outcome
    assert run(job, 2, tmp_path, steps=20).end_reason is EndReason.COMPLETED


def test_a_slow_upload_is_waited_for_when_nobody_hurries(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit is for a store that fails, not for a large checkpoint on a thin line."""
    monkeypatch.setattr(attempt_module, "FINAL_UPLOAD_SECONDS", 0.1)

    def crawl(operation: str, key: str) -> None:
        if operation == "upload" and key.endswith("weights.txt"):
            time.sleep(1.0)

    launched(job, 1)
    slow = Job(FaultyStore(job.root, crawl), "job")
    outcome = run_attempt(slow.attempt(1), plan(tmp_path, scripted(steps=3)), Recorder())
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.COMPLETED, 3)


def test_an_upload_that_the_deadline_cuts_off_is_no_completion(job: Job, tmp_path: Path) -> None:
    bell, opens = Bell(), threading.Event()
    observer = Recorder(on_step=lambda step: step == 3 and bell.ring(stop("going", 3)))

    def stuck(operation: str, key: str) -> None:
        if operation == "upload":
            opens.wait(LONG_ENOUGH)

    launched(job, 1)
    slow = Job(FaultyStore(job.root, stuck), "job")
    command = scripted(steps=3, on_stop="ignore", at={"3": f"wait {tmp_path}/goes on"})
    observer.reactions["notice"] = lambda message, details: (tmp_path / "goes on").touch()
    outcome = run_attempt(slow.attempt(1), plan(tmp_path, command, sources=[bell]), observer)
    opens.set()
    assert outcome.exit_code == 0, "the workload itself was done"
    assert outcome.end_reason is EndReason.INTERRUPTED
    assert outcome.committed_step == 0


@pytest.mark.parametrize("failing", ["metrics/", "outcome.json"])
def test_a_hiccup_at_the_end_does_not_lose_the_outcome(job: Job, tmp_path: Path, failing: str) -> None:
    failures = itertools.count()

    def hiccup(operation: str, key: str) -> None:
        if failing in key and operation in ("write", "create") and (failing == "metrics/" or next(failures) < 2):
            raise StoreUnavailable("slow down")

    launched(job, 1)
    frail = Job(FaultyStore(job.root, hiccup), "job")
    outcome = run_attempt(frail.attempt(1), plan(tmp_path, scripted(steps=3)), Recorder())
    assert outcome.end_reason is EndReason.COMPLETED
    assert job.attempt(1).read_outcome() == outcome


def test_what_earlier_attempts_cost_is_without_its_own_first_heartbeat(job: Job, tmp_path: Path) -> None:
    """It would count twice against the cap."""
    read: list[str] = []

    def beats_first() -> None:
        until(lambda: job.attempt(1).read_heartbeat() is not None)

    launched(job, 1)
    watched = Job(FaultyStore(job.root, lambda operation, key: read.append(f"{operation} {key}")), "job")
    run_attempt(watched.attempt(1), plan(tmp_path, scripted(steps=1), machine_problem=beats_first), Recorder())
    assert "write attempts/0001/heartbeat.json" in read
    assert "read attempts/0001/heartbeat.json" not in read


@pytest.mark.parametrize("answer_lost", [False, True])
@pytest.mark.parametrize("failing", ["create claim.json 1", "folders attempts 1", "read job.json 2"])
def test_a_hiccup_at_the_start_does_not_lose_the_machine(
    job: Job, tmp_path: Path, failing: str, answer_lost: bool
) -> None:
    operations: list[str] = []

    def hiccup(operation: str, key: str) -> None:
        operations.append(f"{operation} {key.rsplit('/', 1)[-1]}")
        if f"{operations[-1]} {operations.count(operations[-1])}" == failing:
            raise StoreUnavailable("slow down")

    def answered(operation: str, key: str) -> None:
        """Nothing is lost."""

    launched(job, 1)
    faults = (answered, hiccup) if answer_lost else (hiccup, answered)
    frail = Job(FaultyStore(job.root, *faults), "job")
    outcome = run_attempt(frail.attempt(1), plan(tmp_path, scripted(steps=3), heartbeat_seconds=60), Recorder())
    assert outcome.end_reason is EndReason.COMPLETED


def test_a_store_that_fails_while_restoring_is_no_failure_of_the_job(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`failed` is never tried again; a network that was away for a moment is no reason for that."""
    run(job, 1, tmp_path, steps=20, every=5, at={"12": "kill"})
    failures = itertools.count()

    def hiccup(operation: str, key: str) -> None:
        if operation == "download" and next(failures) < 2:
            raise StoreUnavailable("connection reset")

    launched(job, 2)
    frail = Job(FaultyStore(job.root, hiccup), "job")
    outcome = run_attempt(frail.attempt(2), plan(tmp_path, scripted(steps=15)), Recorder())
    assert outcome.end_reason is EndReason.COMPLETED
    start = job.attempt(2).read_start()
    assert start is not None
    assert (start.step, start.damaged) == (10, [])

    def break_down(operation: str, key: str) -> None:
        if operation == "download":
            raise StoreUnavailable("connection refused")

    monkeypatch.setattr(attempt_module, "RESTORE_SECONDS", 0.2)
    launched(job, 3)
    broken = Job(FaultyStore(job.root, break_down), "job")
    with pytest.raises(StoreError, match="connection refused"):
        run_attempt(broken.attempt(3), plan(tmp_path, scripted(steps=20)), Recorder())
    standing = job.attempt(3).read_outcome()
    assert standing is not None
    assert standing.end_reason is EndReason.INTERRUPTED


def test_a_store_that_hangs_does_not_keep_a_notice_waiting(job: Job, tmp_path: Path) -> None:
    """Heartbeats stuck in a dead connection for minutes must not cost the two minutes of a spot notice."""
    bell, opens = Bell(), threading.Event()

    def hang(operation: str, key: str) -> None:
        if key.endswith("heartbeat.json") and bell.notice is not None:
            opens.wait(LONG_ENOUGH)

    launched(job, 1)
    hanging = Job(FaultyStore(job.root, hang), "job")

    def ring(step: int) -> None:
        if step == 3:
            beats = len(observer.heartbeats)
            bell.notice = Notice("warning", "it may come", stop=False)
            time.sleep(0.2)
            assert len(observer.heartbeats) <= beats + 1, "the heartbeat hangs"
            bell.ring(stop("it comes", 30))

    observer = Recorder(on_step=ring, reactions={"ended": lambda message, details: opens.set()})
    command = scripted(steps=1000, at={"3": f"wait {tmp_path}/never"})
    outcome = run_attempt(hanging.attempt(1), plan(tmp_path, command, sources=[bell]), observer)
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.INTERRUPTED, 3)
