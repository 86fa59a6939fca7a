"""One attempt, with a real workload process: how it ends, what it saved, and what is on record."""

from __future__ import annotations

import itertools
import json
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import crucible.agent.attempt as attempt_module
import crucible.agent.saving as saving_module
from crucible.agent.attempt import run_attempt
from crucible.agent.metrics import NANOGPT_PATTERN
from crucible.agent.notices import Notice
from crucible.agent.plan import Scratch
from crucible.errors import CheckpointError, FencedOut, StoreError
from crucible.jobs import Job
from crucible.records import Claim, EndReason, Launch, Limits, Outcome, StopRequest
from crucible.store import Store
from tests.agent.harness import Bell, Recorder, in_background, newest, plan, run, scripted
from tests.agent.scripted import weights_after
from tests.faults.faulty_store import FaultyStore
from tests.faults.s3_proxy import S3Proxy
from tests.faults.small_jobs import launched, new_job, running

LONG_ENOUGH = 20.0
"""Seconds that a test waits for something before it gives up."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving_module, "LOOK_SECONDS", 0.02)


@pytest.fixture
def job(store: Store) -> Job:
    return new_job(store)


def committed(job: Job, scratch: Path) -> int:
    found = newest(job, scratch)
    return found[0].step if found else 0


def stop(reason: str = "the machine goes", seconds: float | None = None, **fields: Any) -> Notice:
    return Notice("test", reason, None if seconds is None else time.time() + seconds, **fields)


# Ends


def test_a_workload_that_is_done(job: Job, tmp_path: Path) -> None:
    observer = Recorder()
    outcome = run(job, 1, tmp_path, observer, steps=20, every=5, total_steps=20)
    assert outcome.end_reason is EndReason.COMPLETED
    assert (outcome.step, outcome.committed_step, outcome.exit_code) == (20, 20, 0)
    assert job.attempt(1).outcome == outcome
    assert newest(job, tmp_path)[1] == weights_after(20)  # type: ignore[index]
    assert [json.loads(line)["step"] for line in job.attempt(1).metrics()] == list(range(1, 21))
    assert observer.steps == list(range(1, 21))
    assert observer.lines == ["from step 0"]
    assert observer.heartbeats[-1].total_steps == 20
    assert outcome.first_step_after_seconds is not None
    assert observer.told("ended")
    assert not any((tmp_path / "scratch").rglob("attempt-*")), "the scratch folder outlived the attempt"


def test_attempts_in_a_row_end_with_the_weights_of_an_undisturbed_run(job: Job, tmp_path: Path) -> None:
    assert run(job, 1, tmp_path, steps=30, every=4, at={"10": "kill"}).end_reason is EndReason.KILLED
    assert run(job, 2, tmp_path, steps=30, every=4, at={"18": "exit 1"}).end_reason is EndReason.FAILED
    assert run(job, 3, tmp_path, steps=30, every=4).end_reason is EndReason.COMPLETED
    starts = [attempt.start for attempt in job.attempts()]
    assert [(start.step, start.from_attempt) for start in starts if start] == [(0, None), (8, 1), (16, 2)]
    assert newest(job, tmp_path)[1] == weights_after(30)  # type: ignore[index]


@pytest.mark.parametrize(
    ("options", "reason", "code", "words"),
    [
        ({"at": {"7": "exit 3"}}, EndReason.FAILED, 3, "exit code 3: from step 0"),
        ({"at": {"6": "say out of luck", "7": "exit 1"}}, EndReason.FAILED, 1, "exit code 1: out of luck"),
        ({"at": {"7": "kill"}}, EndReason.KILLED, -9, "killed by SIGKILL; perhaps the machine ran out of memory"),
        ({"at": {"7": "exit 137"}}, EndReason.KILLED, -9, "killed by SIGKILL"),
        ({"at": {"7": f"stop {signal.SIGSEGV.value}"}}, EndReason.FAILED, -11, "signal SIGSEGV"),
        ({"at": {"7": "exit 75"}}, EndReason.INTERRUPTED, 75, "stopped and saved"),
    ],
)
def test_other_ends_are_told_in_words(
    job: Job, tmp_path: Path, options: dict[str, Any], reason: EndReason, code: int, words: str
) -> None:
    outcome = run(job, 1, tmp_path, steps=20, **options)
    assert (outcome.end_reason, outcome.exit_code, outcome.step) == (reason, code, 7)
    assert words in outcome.message
    assert outcome.committed_step == committed(job, tmp_path) == 5
    assert job.attempt(1).outcome == outcome


def test_a_command_that_does_not_exist(job: Job, tmp_path: Path) -> None:
    outcome = run_attempt(launched(job, 1), plan(tmp_path, ["no-such-program", "--x"]), Recorder())
    assert outcome.end_reason is EndReason.FAILED
    assert "cannot start 'no-such-program': No such file or directory" in outcome.message


def test_trained_to_the_step_asked_for(job: Job, tmp_path: Path) -> None:
    launch = Launch(number=1, pool="local", reason="test", stop_at_step=12)
    outcome = run(job, 1, tmp_path, steps=20, launch=launch)
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.PAUSED, 12)


@pytest.mark.parametrize("error", [CheckpointError("no such dataset"), OSError(28, "No space left on device")])
def test_what_prepare_raises_is_on_record(job: Job, tmp_path: Path, error: Exception) -> None:
    def prepare(_scratch: Scratch) -> list[str]:
        raise error

    with pytest.raises(type(error)):
        run_attempt(launched(job, 1), plan(tmp_path, prepare), Recorder())
    outcome = job.attempt(1).outcome
    assert outcome is not None
    assert outcome.end_reason is EndReason.FAILED
    assert str(error) in outcome.message


def test_a_working_folder_that_is_not_there_is_on_record(job: Job, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run(job, 1, tmp_path, steps=2, cwd=tmp_path / "nowhere")
    assert job.attempt(1).outcome is not None


# Notices


def test_a_notice_saves_and_commits(job: Job, tmp_path: Path) -> None:
    bell = Bell()
    observer = Recorder(on_step=lambda step: step == 7 and bell.ring(stop("spot reclaim", 60)))
    outcome = run(
        job, 1, tmp_path, observer, steps=1000, every=5, at={"8": f"wait {tmp_path}/never"}, sources=[Ignored(), bell]
    )
    assert (outcome.end_reason, outcome.message) == (EndReason.INTERRUPTED, "spot reclaim")
    assert outcome.committed_step == committed(job, tmp_path) == 8, "the last step before the notice is saved"
    assert '"reason": "spot reclaim"' in observer.lines[-1], "the workload can read why"
    assert observer.told("notice") == ["perhaps, some day", "spot reclaim"]
    assert [n.reason for n in outcome.notifications] == ["perhaps, some day", "spot reclaim"]


class Ignored:
    """A source that only warns."""

    def poll(self) -> Notice:
        return Notice("test", "perhaps, some day", stop=False)


def test_a_workload_that_ignores_the_request_is_killed_in_time_for_the_upload(job: Job, tmp_path: Path) -> None:
    bell = Bell()
    deadline: list[float] = []

    def ring(step: int) -> None:
        if step == 6:
            deadline.append(time.time() + 4)
            bell.ring(Notice("test", "4 seconds left", deadline[0]))

    at = {"6": f"wait {tmp_path}/never"}
    outcome = run(
        job, 1, tmp_path, Recorder(on_step=ring), steps=1000, on_stop="ignore", every=5, at=at, sources=[bell]
    )
    assert (outcome.end_reason, outcome.exit_code) == (EndReason.INTERRUPTED, -9)
    assert outcome.committed_step == committed(job, tmp_path) == 5
    assert outcome.ended_at.timestamp() < deadline[0]
    assert "ignored the request" in " ".join(n.reason for n in outcome.notifications)


def test_a_deadline_that_is_past_by_this_machines_clock_still_saves(job: Job, tmp_path: Path) -> None:
    """The clock is ahead of whoever gave the notice."""
    bell = Bell()
    observer = Recorder(on_step=lambda step: step == 7 and bell.ring(stop("two minutes, they say", -100)))
    outcome = run(job, 1, tmp_path, observer, steps=1000, at={"7": f"wait {tmp_path}/never"}, sources=[bell])
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.INTERRUPTED, 7)


def test_a_workload_that_fails_to_save_has_failed(job: Job, tmp_path: Path) -> None:
    bell = Bell()
    observer = Recorder(on_step=lambda step: step == 6 and bell.ring(stop()))
    at = {"6": f"wait {tmp_path}/never"}
    outcome = run(job, 1, tmp_path, observer, steps=1000, on_stop="fail", at=at, sources=[bell])
    assert outcome.end_reason is EndReason.FAILED
    assert "could not save" in outcome.message


def test_a_notice_before_the_start_starts_nothing(job: Job, tmp_path: Path) -> None:
    bell = Bell()
    bell.ring(stop("gone before it began"))
    told = threading.Event()

    def prepare(_scratch: Scratch) -> list[str]:
        assert told.wait(LONG_ENOUGH)
        return scripted(steps=1000)

    observer = Recorder()
    fields = {"sources": [bell]}
    observer_thread = threading.Thread(target=_set_when, args=(lambda: bool(observer.heartbeats), told))
    observer_thread.start()
    outcome = run_attempt(launched(job, 1), plan(tmp_path, prepare, **fields), observer)
    observer_thread.join()
    assert (outcome.end_reason, outcome.message) == (EndReason.INTERRUPTED, "gone before it began")
    assert observer.lines == []


def _set_when(holds: Any, event: threading.Event) -> None:
    end = time.monotonic() + LONG_ENOUGH
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(0.1)
    event.set()


def test_a_request_through_the_store(job: Job, tmp_path: Path) -> None:
    def ask(step: int) -> None:
        if step == 3:
            job.attempt(1).request_stop(StopRequest(end_reason=EndReason.CANCELLED, reason="pressed Cancel"))

    at = {"3": f"wait {tmp_path}/never"}
    outcome = run(job, 1, tmp_path, Recorder(on_step=ask), steps=1000, at=at)
    assert (outcome.end_reason, outcome.message) == (EndReason.CANCELLED, "pressed Cancel")
    assert outcome.committed_step == committed(job, tmp_path) == 3


# Money and time


def test_the_budget_stops_and_a_higher_one_goes_on(job: Job, tmp_path: Path) -> None:
    job.set_limits(Limits(max_cost_usd=10.0))
    launch = Launch(number=1, pool="local", reason="test", usd_per_hour=3600.0 * 20)
    at = {"5": f"wait {tmp_path}/never"}
    outcome = run(job, 1, tmp_path, steps=20, at=at, launch=launch)
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.BUDGET, 5)
    assert "budget of $10 is used up" in outcome.message
    assert outcome.limits == Limits(max_cost_usd=10.0)
    assert 0 < outcome.cost_usd == job.cost_usd()
    spent = job.cost_usd()
    again = run(job, 2, tmp_path, steps=20, at=at, launch=launch)
    assert again.end_reason is EndReason.BUDGET, "what attempt 1 has spent counts"
    job.set_limits(Limits(max_cost_usd=10_000.0))
    done = run(job, 3, tmp_path, steps=20)
    assert (done.end_reason, done.committed_step) == (EndReason.COMPLETED, 20)
    assert job.cost_usd() >= spent


def test_the_hours_of_a_job_end(store: Store, tmp_path: Path) -> None:
    job = new_job(store, created_at="2020-01-01T00:00:00Z")
    job.set_limits(Limits(max_hours=100.0))
    outcome = run(job, 1, tmp_path, steps=20, at={"1": f"wait {tmp_path}/never"})
    assert (outcome.end_reason, outcome.message) == (EndReason.BUDGET, "the job's 100 hours are over")


def test_a_limit_raised_while_the_last_save_is_under_way_still_counts_as_raised(job: Job, tmp_path: Path) -> None:
    """The outcome names the limits that stopped the attempt: whoever goes on compares them with those in force."""
    job.set_limits(Limits(max_cost_usd=1.0))
    raised = threading.Event()

    def raise_limits(message: str, _details: dict[str, Any]) -> None:
        if "budget" in message:
            job.set_limits(Limits(max_cost_usd=1000.0))
            beats = len(observer.heartbeats)
            threading.Thread(target=_set_when, args=(lambda: len(observer.heartbeats) > beats + 3, raised)).start()

    observer = Recorder(reactions={"notice": raise_limits})
    bolted = _Bolted(raised)
    launch = Launch(number=1, pool="local", reason="test", usd_per_hour=3600.0 * 20)
    slow = Job(FaultyStore(job.root, bolted), "job")
    launched(job, 1)
    command = scripted(steps=1000, at={"2": f"wait {tmp_path}/never"})
    outcome = run_attempt(slow.attempt(1), plan(tmp_path, command, launch), observer)
    assert outcome.end_reason is EndReason.BUDGET
    assert outcome.limits == Limits(max_cost_usd=1.0)


class _Bolted:
    """Lets no upload through until the event is set."""

    def __init__(self, opens: threading.Event) -> None:
        self.opens = opens

    def __call__(self, operation: str, key: str) -> None:
        if operation == "upload":
            assert self.opens.wait(LONG_ENOUGH)


# The fence


def test_a_second_claim_is_refused_and_leaves_the_first_alone(job: Job, tmp_path: Path) -> None:
    def intrude(step: int) -> None:
        if step == 3:
            with pytest.raises(FencedOut, match="already taken"):
                run_attempt(job.attempt(1), plan(tmp_path, scripted(steps=1)), Recorder())

    outcome = run(job, 1, tmp_path, Recorder(on_step=intrude), steps=10)
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.COMPLETED, 10)


def test_a_superseded_attempt_stops_itself_and_commits_nothing_more(job: Job, tmp_path: Path) -> None:
    def supersede(_message: str, details: dict[str, Any]) -> None:
        if details["step"] == 5:
            running(job, 2, from_step=5)

    observer = Recorder(reactions={"commit": supersede})
    outcome = run(job, 1, tmp_path, observer, steps=100_000, every=5, seconds=0.01)
    assert outcome.end_reason is EndReason.SUPERSEDED
    assert "attempt 2 of job has taken over" in outcome.message
    assert outcome.exit_code == -9
    assert committed(job, tmp_path) == 5


def test_an_attempt_given_up_for_lost_stops_itself(job: Job, tmp_path: Path) -> None:
    verdict = Outcome(end_reason=EndReason.LOST, message="silent", decided_by="supervisor")
    observer = Recorder(on_step=lambda step: step == 3 and job.attempt(1).end(verdict))
    outcome = run(job, 1, tmp_path, observer, steps=100_000, seconds=0.01)
    assert outcome.end_reason is EndReason.SUPERSEDED
    standing = job.attempt(1).outcome
    assert standing is not None
    assert standing.end_reason is EndReason.LOST


def test_two_jobs_of_one_name_share_a_machine(tmp_path: Path) -> None:
    """In different stores; each must keep its hands off the other's files."""
    other = new_job(Store.open(str(tmp_path / "other store")))
    job = new_job(Store.open(str(tmp_path / "store")))

    def visit(step: int) -> None:
        if step == 3:
            assert run(other, 1, tmp_path, steps=3).end_reason is EndReason.COMPLETED

    outcome = run(job, 1, tmp_path, Recorder(on_step=visit), steps=12, every=4, seconds=0.02)
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.COMPLETED, 12)


def test_what_a_killed_attempt_left_on_this_machine_is_cleared(job: Job, tmp_path: Path) -> None:
    run(job, 1, tmp_path, steps=1)
    left: list[Path] = []

    def prepare(scratch: Scratch) -> list[str]:
        left.extend(scratch.root.parent.rglob("large file"))
        return scripted(steps=2)

    folder = next(path for path in (tmp_path / "scratch").iterdir()) / "attempt-0001" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "large file").write_bytes(b"x")
    run_attempt(launched(job, 2), plan(tmp_path, prepare), Recorder())
    assert left == []


# The store fails


class Outage:
    """The store is away while `on`; remembers whether it was asked."""

    def __init__(self) -> None:
        self.on = False
        self.asked = 0

    def __call__(self, operation: str, key: str) -> None:
        if self.on:
            self.asked += 1
            raise StoreError("connection refused")


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
        store = Store.open(s3_place.uri, **s3_place.options | {"endpoint_url": proxy.url})
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
    assert job.attempt(1).outcome is None
    assert committed(job, tmp_path) >= 5
    assert run(job, 2, tmp_path, steps=20).end_reason is EndReason.COMPLETED


def test_a_job_is_not_done_before_its_last_checkpoint_is_in_the_store(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "FINAL_UPLOAD_SECONDS", 0.5)

    def refuse(operation: str, key: str) -> None:
        if operation == "upload" and "step-00000020" in key:
            raise StoreError("quota exceeded")

    launched(job, 1)
    frail = Job(FaultyStore(job.root, refuse), "job")
    outcome = run_attempt(frail.attempt(1), plan(tmp_path, scripted(steps=20, every=20)), Recorder())
    assert outcome.end_reason is EndReason.INTERRUPTED
    assert "quota exceeded" in outcome.message
    assert job.attempt(1).outcome == outcome
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
            raise StoreError("slow down")

    launched(job, 1)
    frail = Job(FaultyStore(job.root, hiccup), "job")
    outcome = run_attempt(frail.attempt(1), plan(tmp_path, scripted(steps=3)), Recorder())
    assert outcome.end_reason is EndReason.COMPLETED
    assert job.attempt(1).outcome == outcome


def test_a_store_that_fails_while_restoring_is_no_failure_of_the_job(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`failed` is never tried again; a network that was away for a moment is no reason for that."""
    run(job, 1, tmp_path, steps=20, every=5, at={"12": "kill"})
    failures = itertools.count()

    def hiccup(operation: str, key: str) -> None:
        if operation == "download" and next(failures) < 2:
            raise StoreError("connection reset")

    launched(job, 2)
    frail = Job(FaultyStore(job.root, hiccup), "job")
    outcome = run_attempt(frail.attempt(2), plan(tmp_path, scripted(steps=15)), Recorder())
    assert outcome.end_reason is EndReason.COMPLETED
    start = job.attempt(2).start
    assert start is not None
    assert (start.step, start.damaged) == (10, [])

    def break_down(operation: str, key: str) -> None:
        if operation == "download":
            raise StoreError("connection refused")

    monkeypatch.setattr(attempt_module, "RESTORE_SECONDS", 0.2)
    launched(job, 3)
    broken = Job(FaultyStore(job.root, break_down), "job")
    with pytest.raises(StoreError, match="connection refused"):
        run_attempt(broken.attempt(3), plan(tmp_path, scripted(steps=20)), Recorder())
    standing = job.attempt(3).outcome
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


# Interrupts in the calling thread


class RaisesAt:
    """Raises KeyboardInterrupt in the main thread at its n-th touch of the store or the observer, and maybe again."""

    def __init__(self, touches: set[int]) -> None:
        self.touches, self.count, self.raised = touches, itertools.count(), 0
        self.armed = True

    def __call__(self, *_about: Any) -> None:
        if self.armed and threading.current_thread() is threading.main_thread() and next(self.count) in self.touches:
            self.raised += 1
            raise KeyboardInterrupt


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
    """Ctrl-C, or Prefect's SIGTERM, comes as an exception wherever the main thread happens to be; some come twice."""
    chance = random.Random(5)
    for point in itertools.count():
        job = new_job(store, f"job-{point}")
        launched(job, 1)
        touch = RaisesAt({point} | ({point + chance.randrange(1, 4)} if point % 2 else set()))
        shaky = Job(FaultyStore(store, touch, touch), job.job_id)
        command = scripted(steps=4, every=2)
        claim = Claim(number=1)
        outcome = run_attempt(shaky.attempt(1), plan(tmp_path, command, claim=lambda claim=claim: claim), Touchy(touch))
        touch.armed = False
        standing = job.attempt(1).outcome
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
            outcome = run_attempt(job.attempt(1), plan(tmp_path, scripted(steps=10, every=3, seconds=0.01)), observer)
        finally:
            over.set()
            striker.join()
        assert job.attempt(1).outcome == outcome, f"round {round_number}"
        assert outcome.committed_step == committed(job, tmp_path / job.job_id)


# Trouble around the workload


def test_observers_that_raise_disturb_nothing(job: Job, tmp_path: Path) -> None:
    class Broken(Recorder):
        def log(self, line: str) -> None:
            raise RuntimeError("no logger")

        def metrics(self, step: int, values: dict[str, float]) -> None:
            raise RuntimeError("no plot")

        def beat(self, heartbeat: Any) -> None:
            raise RuntimeError("no artifact")

        def event(self, kind: str, message: str, **details: Any) -> None:
            raise RuntimeError("no event")

    # More lines than a pipe holds: were nobody reading any more, the workload would hang.
    at = {str(step): "shout" for step in range(1, 41)}
    outcome = run(job, 1, tmp_path, Broken(), steps=40, every=10, seconds=0.01, at=at)
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.COMPLETED, 40)
    assert len([n for n in outcome.notifications if n.source == "observer"]) == 1
    beat = job.attempt(1).heartbeat
    assert beat is not None
    assert beat.sequence > 2


def test_sources_that_raise_silence_nobody(job: Job, tmp_path: Path) -> None:
    class Broken:
        def poll(self) -> Notice | None:
            raise RuntimeError("metadata made of lead")

    bell = Bell()
    observer = Recorder(on_step=lambda step: step == 6 and bell.ring(stop("after all")))
    outcome = run(job, 1, tmp_path, observer, steps=1000, at={"6": f"wait {tmp_path}/never"}, sources=[Broken(), bell])
    assert (outcome.end_reason, outcome.message) == (EndReason.INTERRUPTED, "after all")
    assert any("made of lead" in n.reason for n in outcome.notifications)
    beat = job.attempt(1).heartbeat
    assert beat is not None
    assert beat.sequence > 1


def test_a_checkpoint_that_cannot_be_kept_is_told_and_the_next_one_is(job: Job, tmp_path: Path) -> None:
    observer = Recorder(reactions={"trouble": lambda message, details: (tmp_path / "told").touch()})
    at = {"7": "spoil", "8": f"wait {tmp_path}/told"}
    outcome = run(job, 1, tmp_path, observer, steps=20, every=5, at=at)
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.COMPLETED, 20)
    assert any("state.json is not valid JSON" in message for message in observer.told("trouble"))


def test_a_last_checkpoint_that_cannot_be_kept_is_a_failure(job: Job, tmp_path: Path) -> None:
    outcome = run(job, 1, tmp_path, steps=20, every=50, at={"19": "spoil", "20": "exit 0"})
    assert outcome.end_reason is EndReason.FAILED
    assert "state.json is not valid JSON" in outcome.message


def test_a_full_disk_at_the_moment_of_the_notice(job: Job, tmp_path: Path) -> None:
    """The agent's own small files cannot be written; the stop goes on."""
    bell = Bell()

    def prepare(scratch: Scratch) -> list[str]:
        scratch.stop_reason_file.mkdir()
        scratch.control_file.with_suffix(".partial").mkdir()
        return scripted(steps=1000, every=5, at={"6": f"wait {tmp_path}/never"})

    observer = Recorder(on_step=lambda step: step == 6 and bell.ring(stop("going", 60)))
    fields = {"sources": [bell], "save": saving_module.SavePolicy(minimum_seconds=0.1)}
    outcome = run_attempt(launched(job, 1), plan(tmp_path, prepare, **fields), observer)
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.INTERRUPTED, 6)


def test_words_that_are_no_text_and_patterns_that_find_no_number(job: Job, tmp_path: Path) -> None:
    at = {"2": "say iter 2: loss ...", "3": "say iter 3: loss 1.5", "4": "say iter 99999999999: loss nan"}
    observer = Recorder()
    outcome = run(job, 1, tmp_path, observer, steps=6, seconds=0.01, at=at, printed_metrics=NANOGPT_PATTERN)
    assert outcome.end_reason is EndReason.COMPLETED
    assert "iter 2: loss ..." in observer.lines
    reported = [json.loads(line) for line in job.attempt(1).metrics()]
    assert {"step": 3, "train_loss": 1.5} in [{k: v for k, v in line.items() if k != "time"} for line in reported]


def test_a_damaged_checkpoint_is_told_and_on_record(job: Job, tmp_path: Path) -> None:
    run(job, 1, tmp_path, steps=20, every=5, at={"7": "kill"})
    run(job, 2, tmp_path, steps=20, every=5, at={"12": "kill"})
    key = "checkpoints/step-00000010.attempt-0002/weights.txt"
    data = bytearray(job.store.read(key))
    data[3] ^= 1
    job.store.write(key, bytes(data))
    observer = Recorder()
    outcome = run(job, 3, tmp_path, observer, steps=20, every=5)
    assert outcome.end_reason is EndReason.COMPLETED
    assert newest(job, tmp_path)[1] == weights_after(20)  # type: ignore[index]
    start = job.attempt(3).start
    assert start is not None
    assert start.step == 5
    assert "step-00000010.attempt-0002: weights.txt has sha256" in start.damaged[0]
    assert len(observer.told("damaged")) == 1


def test_orphans_of_the_workload_do_not_outlive_it(job: Job, tmp_path: Path) -> None:
    outcome = run(job, 1, tmp_path, steps=5, at={"3": f"orphan {tmp_path}/pid"})
    assert outcome.end_reason is EndReason.COMPLETED
    assert not _alive(int((tmp_path / "pid").read_text()))


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_attempts_in_threads_beside_each_other(store: Store, tmp_path: Path) -> None:
    """A flow may run several, as a sweep on one machine does."""
    jobs = [new_job(store, f"job-{index}") for index in range(3)]
    started = [
        in_background(launched(job, 1), plan(tmp_path, scripted(steps=10, seconds=0.01)), Recorder()) for job in jobs
    ]
    for thread, ends in started:
        thread.join(LONG_ENOUGH)
        assert ends[0].end_reason is EndReason.COMPLETED
