"""Several machines train one attempt: what happens on one of them reaches all, and only the first owns the attempt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crucible.agent import member as member_module
from crucible.agent import nodes as nodes_module
from crucible.agent.member import run_member
from crucible.agent.nodes import Nodes, NodeWatch
from crucible.agent.notices import Notice
from crucible.agent.plan import Scratch
from crucible.agent.torchrun import rank_environment
from crucible.agent.workload import WorkloadEnd
from crucible.errors import StoreRefused
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import Claim, EndReason, Heartbeat, NodeReport, Outcome, StopRequest
from tests.agent.harness import Bell, Recorder, in_background, plan, scripted
from tests.faults.faulty_store import FaultyStore
from tests.faults.small_jobs import launched, running
from tests.waiting import until

TWO = Nodes(count=2)


@pytest.fixture(autouse=True)
def quick_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member_module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(nodes_module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr("crucible.agent.watching.LOOK_SECONDS", 0.05)


@contextmanager
def second_node(attempt: Attempt, scratch: Path, command: Any, **fields: Any) -> Iterator[list[str]]:
    """The attempt's second node in a thread, and what it logs; it has left by itself at the end."""
    lines: list[str] = []
    own = plan(scratch, command, nodes=replace(TWO, rank=1), **fields)
    thread = threading.Thread(target=run_member, args=(attempt, own, lines.append), daemon=True)
    thread.start()
    yield lines
    thread.join(60)
    assert not thread.is_alive(), f"the second node did not leave: {lines}"


def two_nodes(
    job: Job, scratch: Path, second: list[str], act: Callable[[Attempt], object] = lambda _: None, **fields: Any
) -> tuple[Outcome, list[str]]:
    """Train on two; `act` once both train. `fields` are those of the second node's plan."""
    attempt = launched(job, 1)
    first = plan(scratch, scripted(steps=10_000, seconds_per_step=0.02), nodes=TWO)
    with second_node(job.attempt(1), scratch, second, **fields) as lines:
        thread, ends = in_background(attempt, first, Recorder())
        until(lambda: all(any(scratch.glob(f"scratch/{own}*/attempt-*/checkpoints/step-*")) for own in ("", "node-1/")))
        act(attempt)
        thread.join(60)
    assert isinstance(ends[0], Outcome), ends
    return ends[0], lines


LONG = scripted(steps=10_000, seconds_per_step=0.02)


class BrokenSource:
    """A notice source that fails."""

    def poll(self) -> Notice | None:
        raise KeyError("Events")


def test_a_notice_on_the_second_node_stops_and_saves_all(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another source is broken, and the disk is too full for the reason to stop."""
    write = Scratch.write_stop_reason

    def write_stop_reason(scratch: Scratch, notice: Notice) -> None:
        if "node-1" in str(scratch.root):
            raise OSError(28, "No space left on device")
        write(scratch, notice)

    monkeypatch.setattr(Scratch, "write_stop_reason", write_stop_reason)
    bell = Bell()
    outcome, lines = two_nodes(
        job,
        tmp_path,
        LONG,
        lambda _: bell.ring(Notice("ec2", "spot interruption")),
        sources=[BrokenSource(), bell],
    )
    assert (outcome.end_reason, outcome.message) == (EndReason.INTERRUPTED, "node 1: spot interruption")
    assert outcome.saved
    assert outcome.committed_step > 0
    report = job.attempt(1).read_node_report(1)
    assert report is not None
    assert report.end_reason is EndReason.INTERRUPTED, "its own workload saved, too"
    assert any("leaves" in line for line in lines)


def test_a_request_to_stop_reaches_the_second_node_and_its_own_price_is_on_the_bill(job: Job, tmp_path: Path) -> None:
    request = StopRequest(end_reason=EndReason.CANCELLED, reason="stopped by a person")

    def stop(attempt: Attempt) -> None:
        until(lambda: (beat := attempt.read_heartbeat()) and beat.further_instances == ["g6.xlarge"])
        attempt.request_stop(request)

    claim = Claim(number=1, instance="g6.xlarge", usd_per_hour=360.0)
    outcome, _ = two_nodes(job, tmp_path, LONG, stop, claim=lambda: claim)
    assert outcome.end_reason is EndReason.CANCELLED
    assert outcome.saved
    assert (outcome.usd_per_hour, outcome.further_instances) == (360.0, ["g6.xlarge"]), "the first one is free"
    assert outcome.cost_usd > 0.09 * outcome.seconds, "from the start"


def test_a_fenced_attempt_loses_its_second_node(job: Job, tmp_path: Path) -> None:
    def take_over(_: Attempt) -> None:
        launched(job, 2).take(Claim(number=2))

    outcome, lines = two_nodes(job, tmp_path, LONG, take_over)
    assert outcome.end_reason is EndReason.SUPERSEDED
    assert any("attempt 2 of job has taken over" in line or "superseded" in line for line in lines)


def test_a_second_node_that_fails_is_what_the_attempt_fails_of(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes_module, "FOLLOW_SECONDS", 0.2)
    monkeypatch.setattr(nodes_module, "KILL_SECONDS", 0.1)
    attempt = launched(job, 1)
    first = plan(tmp_path, LONG, nodes=TWO)
    with second_node(job.attempt(1), tmp_path, ["sh", "-c", "echo ValueError: no such column; exit 3"]):
        thread, ends = in_background(attempt, first, Recorder())
        thread.join(60)
    assert ends[0].end_reason is EndReason.FAILED
    assert "node 1: the workload failed with exit code 3: ValueError: no such column" in ends[0].message


def test_a_node_that_dies_interrupts_the_attempt(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with its workload, it leaves a report that does not move; the first one's workload waits for it."""
    monkeypatch.setattr(nodes_module, "SILENT_SECONDS", 0.5)
    attempt = launched(job, 1)
    attempt.write_node_report(1, NodeReport(sequence=7, phase="training", host="gone"))
    thread, ends = in_background(attempt, plan(tmp_path, LONG, nodes=TWO), Recorder())
    thread.join(60)
    assert ends[0].end_reason is EndReason.INTERRUPTED
    assert ends[0].message.startswith("node 1 (gone) died: no sign of life")


def test_the_second_node_leaves_a_first_one_that_is_silent(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member_module, "OWNER_SILENT_SECONDS", 0.5)
    attempt = running(job, 1)
    attempt.write_heartbeat(Heartbeat(sequence=3, phase="training"))
    attempt.publish_rendezvous(TWO.rendezvous())
    with second_node(job.attempt(1), tmp_path, LONG) as lines:
        pass
    assert "no heartbeat of the first node" in lines[-1]


def test_a_second_node_does_not_wait_for_a_damaged_place_to_meet(job: Job, tmp_path: Path) -> None:
    attempt = running(job, 1)
    attempt.write_heartbeat(Heartbeat(sequence=3, phase="preparing"))
    job.store.write("attempts/0001/nodes/rendezvous.json", b'{"host": ')
    with second_node(job.attempt(1), tmp_path, LONG):
        until(lambda: (found := attempt.read_node_report(1)) and found.end_reason)
        attempt.end(Outcome(end_reason=EndReason.FAILED, message="as the second node says"))
    report = attempt.read_node_report(1)
    assert report is not None
    assert "nodes/rendezvous.json is damaged" in report.message


@pytest.mark.parametrize("notice", [None, Notice("ec2", "spot interruption")], ids=["it is over", "its machine goes"])
def test_a_second_node_that_is_still_being_prepared_sees_what_happens(
    job: Job, tmp_path: Path, notice: Notice | None
) -> None:
    """Installing what a script needs takes minutes."""
    attempt, bell, preparing, gate = running(job, 1), Bell(), threading.Event(), threading.Event()
    attempt.write_heartbeat(Heartbeat(sequence=3, phase="preparing"))
    attempt.publish_rendezvous(TWO.rendezvous())

    def prepare(_: Scratch) -> list[str]:
        preparing.set()
        gate.wait(60)
        return LONG

    try:
        with second_node(job.attempt(1), tmp_path, prepare, sources=[bell]) as lines:
            preparing.wait(60)
            if notice is not None:
                bell.ring(notice)
            else:
                attempt.end(Outcome(end_reason=EndReason.CANCELLED, message="enough"))
    finally:
        gate.set()
    report = job.attempt(1).read_node_report(1)
    assert report is not None
    assert (report.notice and report.notice.reason) == (notice and notice.reason)
    assert "leaves" in lines[-1]


def test_a_second_node_leaves_a_store_that_stays_away(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workload has ended, and how the attempt did cannot be read: the machine must not wait for ever."""
    monkeypatch.setattr(member_module, "LINGER_SECONDS", 0.3)
    attempt = running(job, 1)
    attempt.write_heartbeat(Heartbeat(sequence=3, phase="training"))
    attempt.publish_rendezvous(TWO.rendezvous())

    def away(operation: str, key: str) -> None:
        if (tmp_path / "ended").exists():
            raise StoreRefused("access denied")

    cut_off = Job(FaultyStore(job.root, away), job.job_id)
    with second_node(cut_off.attempt(1), tmp_path, ["touch", "ended"]) as lines:
        pass
    assert "nothing happened" in lines[-1]


class Clock:
    """A clock that only its reader's waiting moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


RESET = WorkloadEnd(EndReason.FAILED, "the workload failed with exit code 1: RuntimeError: Connection reset by peer", 1)
REPORT = NodeReport(sequence=1, phase="training", host="b")


@pytest.mark.parametrize(
    ("report", "end_reason", "message"),
    [
        (REPORT, EndReason.INTERRUPTED, "node 1 (b) died: no sign of life"),
        (
            REPORT.model_copy(update={"end_reason": EndReason.KILLED, "message": "killed by SIGKILL"}),
            EndReason.KILLED,
            "node 1: killed by SIGKILL",
        ),
        (
            REPORT.model_copy(update={"end_reason": EndReason.FAILED, "message": "IndexError: 7"}),
            EndReason.FAILED,
            "node 1: IndexError: 7",
        ),
        (
            REPORT.model_copy(update={"end_reason": EndReason.FAILED, "message": "gloo: connection closed by peer"}),
            EndReason.FAILED,
            RESET.message,
        ),
        (None, EndReason.FAILED, RESET.message),
    ],
)
def test_a_lost_connection_is_explained_by_the_other_node(
    job: Job, report: NodeReport | None, end_reason: EndReason, message: str
) -> None:
    attempt, clock = running(job, 1), Clock()
    if report is not None:
        attempt.write_node_report(1, report)
    end, notice = NodeWatch(attempt, 2, clock=clock, wait=clock.wait).explain(RESET)
    assert (notice.end_reason if notice else end.end_reason) is end_reason
    assert (notice.reason if notice else end.message).startswith(message)
    assert clock.now < 40, "with the next launch it has to be within a minute"


def test_a_store_that_is_away_does_not_make_a_node_silent(job: Job) -> None:
    attempt, clock = running(job, 1), Clock()
    attempt.write_node_report(1, REPORT)
    watch = NodeWatch(attempt, 2, clock=clock, wait=clock.wait)
    assert watch.look() is None
    clock.now += 600.0  # nobody could read or write
    assert watch.look() is None


def test_ranks_follow_the_nodes_not_their_addresses() -> None:
    """torchrun orders nodes by address; the process that saves must be where the attempt's agent is."""
    torchrun = {"RANK": "0", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "0", "CRUCIBLE_NODE_RANK": "2"}
    ranks = rank_environment(torchrun)
    assert (ranks["RANK"], ranks["GROUP_RANK"], ranks["LOCAL_RANK"]) == ("9", "2", "1")
