"""One attempt that is asked to stop: notices, requests, limits of money and time, and a successor."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from crucible.agent.attempt import run_attempt
from crucible.agent.notices import Notice
from crucible.agent.plan import Scratch
from crucible.errors import FencedOut
from crucible.jobs.job import Job
from crucible.jobs.records import Claim, EndReason, Launch, Limits, Outcome, StopRequest
from crucible.store import Store, store_at
from tests.agent.harness import LONG_ENOUGH, Bell, Recorder, committed, plan, run, scripted, stop
from tests.faults.faulty_store import FaultyStore
from tests.faults.small_jobs import launched, new_job, running

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
    assert observer.messages("notice") == ["perhaps, some day", "spot reclaim"]
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


@pytest.mark.parametrize(
    ("every", "saved", "label"), [(5, True, "interrupted, saved"), (50, False, "interrupted, nothing new saved")]
)
def test_saved_is_said_only_when_it_was(job: Job, tmp_path: Path, every: int, saved: bool, label: str) -> None:
    """A script that does not handle SIGTERM dies of it: what counts is what was committed before."""
    bell = Bell()
    observer = Recorder(on_step=lambda step: step == 7 and bell.ring(stop("spot reclaim", 60)))
    at = {"7": f"wait {tmp_path}/never"}
    outcome = run(job, 1, tmp_path, observer, steps=1000, on_stop="die", every=every, at=at, sources=[bell])
    assert (outcome.end_reason, outcome.exit_code, outcome.saved) == (EndReason.INTERRUPTED, -15, saved)
    assert outcome.label == label
    assert observer.messages("ended")[0].startswith(label)
    assert ("had not saved" in outcome.message) != saved


def test_a_damaged_stop_request_stops_and_saves(job: Job, tmp_path: Path) -> None:
    key = "attempts/0001/stop.json"
    observer = Recorder(on_step=lambda step: step == 3 and job.store.write(key, b'{"end_rea'))
    outcome = run(job, 1, tmp_path, observer, steps=1000, at={"3": f"wait {tmp_path}/never"})
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.INTERRUPTED, 3)
    assert key in outcome.message


def test_damaged_limits_are_named_and_the_attempt_goes_on(job: Job, tmp_path: Path) -> None:
    key = "limits/0001.json"
    reactions = {"trouble": lambda message, details: key in message and (tmp_path / "go").touch()}
    observer = Recorder(reactions, on_step=lambda step: step == 3 and job.store.write(key, b'{"max_att'))
    outcome = run(job, 1, tmp_path, observer, steps=8, at={"4": f"wait {tmp_path}/go"})
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.COMPLETED, 8)
    assert [key in message for message in observer.messages("trouble")] == [True], "named once"


def test_a_damaged_claim_of_a_successor_still_takes_over(job: Job, tmp_path: Path) -> None:
    observer = Recorder(on_step=lambda step: step == 3 and job.store.write("attempts/0002/claim.json", b""))
    outcome = run(job, 1, tmp_path, observer, steps=1000, at={"3": f"wait {tmp_path}/never"})
    assert outcome.end_reason is EndReason.SUPERSEDED


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
    noticed = threading.Event()

    def prepare(_scratch: Scratch) -> list[str]:
        assert noticed.wait(LONG_ENOUGH)
        return scripted(steps=1000)

    observer = Recorder()
    fields = {"sources": [bell]}
    observer_thread = threading.Thread(target=_set_when, args=(lambda: bool(observer.heartbeats), noticed))
    observer_thread.start()
    outcome = run_attempt(launched(job, 1), plan(tmp_path, prepare, **fields), observer)
    observer_thread.join()
    assert (outcome.end_reason, outcome.message) == (EndReason.INTERRUPTED, "gone before it began")
    assert observer.lines == []


def _set_when(holds: Any, event: threading.Event) -> None:
    end = time.monotonic() + LONG_ENOUGH
    while not (holds() or event.is_set()) and time.monotonic() < end:
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
    launch = Launch(number=1, pool="local", reason="test", usd_per_hour=3600.0 * 2000)
    at = {"5": f"wait {tmp_path}/never"}
    observer = Recorder(on_step=lambda step: step == 5 and job.set_limits(Limits(max_cost_usd=10.0)))
    outcome = run(job, 1, tmp_path, observer, steps=20, at=at, launch=launch)
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.BUDGET, 5)
    assert "budget of $10 is used up" in outcome.message
    assert outcome.limits == Limits(max_cost_usd=10.0)
    assert 0 < outcome.cost_usd == job.cost_usd()
    spent = job.cost_usd()
    again = run(job, 2, tmp_path, steps=20, at=at, launch=launch)
    assert again.end_reason is EndReason.BUDGET, "what attempt 1 has spent counts"
    job.set_limits(Limits(max_cost_usd=1e9))
    done = run(job, 3, tmp_path, steps=20)
    assert (done.end_reason, done.committed_step) == (EndReason.COMPLETED, 20)
    assert job.cost_usd() >= spent


def test_the_cap_follows_the_machine_that_took_the_attempt_up(job: Job, tmp_path: Path) -> None:
    """Planned as free, on a machine that costs $20 a second: bill and cap count the machine's price."""
    job.set_limits(Limits(max_cost_usd=10.0))
    launched(job, 1)
    at = {"5": f"wait {tmp_path}/never"}
    claim = Claim(number=1, instance="g5.xlarge", usd_per_hour=3600.0 * 20, price_remark="the machine is g5.xlarge")
    observer = Recorder()
    attempt_plan = replace(plan(tmp_path, scripted(steps=20, at=at)), claim=lambda: claim)
    outcome = run_attempt(job.attempt(1), attempt_plan, observer)
    assert outcome.end_reason is EndReason.BUDGET
    assert outcome.cost_usd == pytest.approx(outcome.seconds * 20, rel=0.2)
    assert outcome.usd_per_hour == 3600.0 * 20
    assert observer.messages("claimed") == ["attempt 1 of job runs here; the machine is g5.xlarge"]


def test_the_hours_of_a_job_end(store: Store, tmp_path: Path) -> None:
    job = new_job(store, created_at="2020-01-01T00:00:00Z")
    job.set_limits(Limits(max_hours=100.0))
    outcome = run(job, 1, tmp_path, steps=20, at={"1": f"wait {tmp_path}/never"})
    assert outcome.end_reason is EndReason.BUDGET
    assert outcome.message.startswith("the job's 100 hours are over")


def test_hours_are_counted_without_this_machines_time_of_day(store: Store, tmp_path: Path) -> None:
    """It is years ahead of the supervisor's, by which the job began and its attempt was launched."""
    began = datetime(2020, 1, 1, tzinfo=UTC)
    job = new_job(store, created_at=began)
    job.set_limits(Limits(max_hours=1.0))
    job.decide(Launch(number=1, pool="local", reason="test", decided_at=began + timedelta(minutes=1)))
    launch = job.attempt(1).read_launch()
    attempt_plan = plan(tmp_path, scripted(steps=3), launch)
    assert run_attempt(job.attempt(1), attempt_plan, Recorder()).end_reason is EndReason.COMPLETED


def test_a_limit_raised_while_the_last_save_is_under_way_still_counts_as_raised(job: Job, tmp_path: Path) -> None:
    """The outcome names the limits that stopped the attempt: whoever goes on compares them with those in force."""
    job.set_limits(Limits(max_cost_usd=1.0))
    raised = threading.Event()

    def raise_limits(message: str, _details: dict[str, Any]) -> None:
        if "budget" in message:
            job.set_limits(Limits(max_cost_usd=1000.0))
            beats = len(observer.heartbeats)
            threads.append(
                threading.Thread(target=_set_when, args=(lambda: len(observer.heartbeats) > beats + 3, raised))
            )
            threads[-1].start()

    threads: list[threading.Thread] = []
    observer = Recorder(reactions={"notice": raise_limits})
    bolted = _Bolted(raised)
    launch = Launch(number=1, pool="local", reason="test", usd_per_hour=3600.0 * 20)
    slow = Job(FaultyStore(job.root, bolted), "job")
    launched(job, 1)
    command = scripted(steps=1000, at={"2": f"wait {tmp_path}/never"})
    outcome = run_attempt(slow.attempt(1), plan(tmp_path, command, launch), observer)
    raised.set()
    for thread in threads:
        thread.join()
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
    lost = Outcome(end_reason=EndReason.LOST, message="silent", decided_by="supervisor")
    observer = Recorder(on_step=lambda step: step == 3 and job.attempt(1).end(lost))
    outcome = run(job, 1, tmp_path, observer, steps=100_000, seconds=0.01)
    assert outcome.end_reason is EndReason.SUPERSEDED
    standing = job.attempt(1).read_outcome()
    assert standing is not None
    assert standing.end_reason is EndReason.LOST


def test_two_jobs_of_one_name_share_a_machine(tmp_path: Path) -> None:
    """In different stores; each must keep its hands off the other's files."""
    other = new_job(store_at(str(tmp_path / "other store")))
    job = new_job(store_at(str(tmp_path / "store")))

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
