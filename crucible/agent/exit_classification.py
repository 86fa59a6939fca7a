"""Why an attempt ended: from what the workload did, and what it was asked to do."""

from __future__ import annotations

from dataclasses import replace

from crucible.agent.nodes import NodeWatch
from crucible.agent.notices import Notice
from crucible.agent.plan import AttemptPlan
from crucible.agent.states import State
from crucible.checkpoints.manifest import Checkpoint
from crucible.contract import EXIT_SAVED
from crucible.errors import LocalDiskError, MachineUnfit, SourceUnreachable, StoreUnavailable
from crucible.jobs.records import EndReason

SIGNAL = "signal"
"""The source of notices that know nothing but that this process got a signal."""


def classify_exit(state: State, stop_at_step: int | None) -> tuple[EndReason, str]:
    """The reason why an attempt ended, and a sentence about it. `state` is that of an attempt that has ended."""
    if state.fenced is not None:
        return EndReason.SUPERSEDED, str(state.fenced)
    if state.failure is not None:
        return blame(state.failure), str(state.failure) or repr(state.failure)
    end, notice = state.end, state.notice
    if end is not None and end.end_reason is EndReason.COMPLETED:
        if state.uncommitted is not None:  # nothing counts as done that is not in the store
            why = f"the workload is done, but the last checkpoint could not be committed: {state.uncommitted}"
            return blame(state.uncommitted), why
        return end.end_reason, end.message
    if notice is not None and (end is None or end.end_reason is not EndReason.FAILED):
        if end is not None and end.end_reason is EndReason.KILLED and not was_saved(state):
            return notice.end_reason, f"{notice.reason}; {end.message}, and had not saved"
        return notice.end_reason, notice.reason
    assert end is not None
    reached = stop_at_step is not None and state.committed_step >= stop_at_step
    if end.end_reason is EndReason.INTERRUPTED and reached:
        return EndReason.PAUSED, f"trained to step {state.committed_step} as asked"
    return end.end_reason, end.message


def unexplained(state: State, stop_at_step: int | None) -> bool:
    """Whether the attempt was stopped from outside and only by a signal."""
    if state.fenced is not None or state.failure is not None or (state.notice and state.notice.source != SIGNAL):
        return False
    if state.end is None:
        return state.notice is not None
    reached = stop_at_step is not None and state.committed_step >= stop_at_step
    return state.end.end_reason in (EndReason.INTERRUPTED, EndReason.KILLED) and not reached


def explain(state: State, plan: AttemptPlan, nodes: NodeWatch | None) -> tuple[State, list[Notice]]:
    """The state with what the pool and the other nodes know of the end, and the notices that they had.

    A workload whose peer is gone fails, too: what counts is why the peer went.
    """
    notices = []
    if unexplained(state, plan.launch.stop_at_step) and (notice := plan.explain()) is not None:
        state = replace(state, notice=notice)
        notices.append(notice)
    end = state.end
    failed = end is not None and end.end_reason in (EndReason.FAILED, EndReason.KILLED)
    if nodes is None or end is None or not failed or state.fenced or state.failure:
        return state, notices
    if state.notice is not None:  # the processes are killed, or lose each other, one after the other
        return replace(state, end=replace(end, end_reason=EndReason.KILLED)), notices
    explained, found = nodes.explain(end)
    return replace(state, end=explained, notice=found), [*notices, *([found] if found else [])]


def committed_step(state: State, reason: EndReason, newest: Checkpoint | None, total_steps: int | None) -> int:
    """The last checkpoint of a finished script has its outputs, and a number of its own after the last save's."""
    if reason is not EndReason.COMPLETED:
        return state.committed_step
    shown = state.committed_step if newest is None else newest.shown_step
    return shown if total_steps is None else min(shown, total_steps)


def was_saved(state: State) -> bool:
    """Whether the attempt committed something new, or its workload reported a save of which nothing was lost."""
    said_so = state.end is not None and state.end.exit_code == EXIT_SAVED and state.uncommitted is None
    return said_so or state.committed_step > state.start_step


def blame(error: Exception) -> EndReason:
    """Interrupted when the same may go well at another time or place, failed when the user has to fix it."""
    if isinstance(error, MachineUnfit):
        return EndReason.UNFIT
    passes = isinstance(error, StoreUnavailable | SourceUnreachable | LocalDiskError)
    return EndReason.INTERRUPTED if passes else EndReason.FAILED
