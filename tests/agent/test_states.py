"""What follows from what in an attempt, as one table: state × event → state, action."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from crucible.agent.notices import Notice
from crucible.agent.plan import WorkloadCommand
from crucible.agent.states import (
    Action,
    Claimed,
    Committed,
    DeadlinePassed,
    Event,
    Failed,
    Fenced,
    Noticed,
    Phase,
    Prepared,
    Restored,
    State,
    Uploaded,
    WorkloadEnded,
    deadlines,
    transition,
)
from crucible.agent.workload import WorkloadEnd
from crucible.checkpoints.manifest import Checkpoint
from crucible.errors import FencedOut
from crucible.jobs.records import EndReason

STOP = Noticed(Notice("test", "the machine goes"), kill_at=50.0, ends_at=60.0)
WARNING = Noticed(Notice("test", "perhaps", stop=False), kill_at=5.0)
FENCED = Fenced(FencedOut("attempt 2 has taken over"))
FAILED = Failed(RuntimeError("no such dataset"))
ENDED = WorkloadEnded(WorkloadEnd(EndReason.COMPLETED, "done", 0))
COMMITTED = Committed(Checkpoint(job_id="job", attempt=1, step=30, files=[]), 1.0)
EVENTS: dict[str, Event] = {
    "claimed": Claimed(),
    "restored": Restored(10, Path("step-00000010")),
    "prepared": Prepared(WorkloadCommand(("train",))),
    "stop": STOP,
    "warning": WARNING,
    "deadline": DeadlinePassed(),
    "fenced": FENCED,
    "workload ended": ENDED,
    "committed": COMMITTED,
    "uploaded": Uploaded(),
    "failed": FAILED,
}
P, A = Phase, Action
TABLE: dict[Phase, dict[str, tuple[Phase, Action | None]]] = {
    P.CLAIMING: {
        "claimed": (P.RESTORING, A.RESTORE),
        "stop": (P.ENDED, A.RECORD),
        "fenced": (P.ENDED, A.RECORD),
        "failed": (P.ENDED, A.RECORD),
    },
    P.RESTORING: {
        "restored": (P.PREPARING, A.PREPARE),
        "stop": (P.ENDED, A.RECORD),
        "fenced": (P.ENDED, A.RECORD),
        "failed": (P.ENDED, A.RECORD),
    },
    P.PREPARING: {
        "prepared": (P.TRAINING, A.START),
        "stop": (P.ENDED, A.RECORD),
        "fenced": (P.ENDED, A.RECORD),
        "failed": (P.ENDED, A.RECORD),
    },
    P.TRAINING: {
        "stop": (P.STOPPING, A.ASK_TO_STOP),
        "fenced": (P.STOPPING, A.KILL),
        "workload ended": (P.COMMITTING, A.FINISH_UPLOADS),
        "failed": (P.ENDED, A.RECORD),
    },
    P.STOPPING: {
        "deadline": (P.STOPPING, A.KILL),
        "fenced": (P.STOPPING, A.KILL),
        "workload ended": (P.COMMITTING, A.FINISH_UPLOADS),
        "failed": (P.ENDED, A.RECORD),
    },
    P.COMMITTING: {
        "stop": (P.COMMITTING, A.FINISH_UPLOADS),
        "deadline": (P.ENDED, A.RECORD),
        "fenced": (P.ENDED, A.RECORD),
        "uploaded": (P.ENDED, A.RECORD),
        "failed": (P.ENDED, A.RECORD),
    },
    P.ENDED: {},
}


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("phase", Phase)
def test_the_table(phase: Phase, event: str) -> None:
    """Every pair; what the table does not name changes neither phase nor the world."""
    after, action = transition(State(phase=phase), EVENTS[event])
    assert (after.phase, action) == TABLE[phase].get(event, (phase, None))


def test_the_first_notice_counts_and_a_later_one_brings_the_deadline_nearer() -> None:
    state, _ = transition(State(phase=Phase.TRAINING), STOP)
    state, action = transition(state, Noticed(Notice("test", "sooner"), kill_at=20.0, ends_at=30.0))
    assert (state.notice, state.kill_at, state.ends_at, action) == (STOP.notice, 20.0, 30.0, None)
    state, _ = transition(state, Noticed(Notice("test", "later"), kill_at=200.0))
    assert (state.kill_at, state.ends_at) == (20.0, 30.0)


def test_a_fenced_attempt_uploads_nothing() -> None:
    state, _ = transition(State(phase=Phase.TRAINING), FENCED)
    state, action = transition(state, ENDED)
    assert (state.phase, state.fenced, action) == (Phase.ENDED, FENCED.error, Action.RECORD)


def test_steps_are_kept() -> None:
    state, _ = transition(State(phase=Phase.RESTORING), EVENTS["restored"])
    assert (state.start_step, state.committed_step) == (10, 10)
    state, _ = transition(state, COMMITTED)
    assert (state.start_step, state.committed_step) == (10, 30)


def test_a_kill_is_asked_for_once() -> None:
    state, _ = transition(State(phase=Phase.STOPPING, kill_at=50.0), DeadlinePassed())
    assert state.kill_at == math.inf


def test_deadlines_leave_time_for_the_upload() -> None:
    long = deadlines(Notice("test", "", deadline=4e9), upload_seconds=10.0)
    assert long.ends_at - long.kill_at == pytest.approx(16.0)
    past = deadlines(Notice("test", "", deadline=1.0), upload_seconds=10.0)
    assert past.ends_at - past.kill_at == pytest.approx(0.6 * 4.0), "a clock that is ahead still leaves some time"
    assert deadlines(Notice("test", ""), 10.0).ends_at == math.inf
