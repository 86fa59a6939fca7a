"""The end of flow runs: in a state of our own choosing, and at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled, Completed, Failed
from prefect.utilities.engine import propose_state_sync

from crucible.jobs.status import JobState


class Ended(Abort):
    """The run has its final state; Prefect's engine has only to leave."""

    def __init__(self, state: State) -> None:
        super().__init__(state.message)
        self.state = state


def end_as(state: State) -> State:
    """For a flow's last line, `return end_as(state)`.

    Prefect's engine asks every state that a flow returns for its result, and takes what a state other than Completed
    answers for an error: a stack trace in the run's log, and a process that exits with 1. So such a state is reported
    here, and raised as `Ended`, which the engine knows as a quiet end.
    """
    if state.is_completed():
        return state
    with get_client(sync_client=True) as client:
        raise Ended(propose_state_sync(client, state, flow_run_id=UUID(flow_run.id or "")))


def as_prefect_state(state: JobState, reason: str) -> State:
    """How the end of a job or a sweep shows in the Prefect UI."""
    match state:
        case JobState.COMPLETED:
            return Completed(message=reason)
        case JobState.PAUSED:
            return Completed(name="Paused at step", message=reason)
        case JobState.BUDGET_STOP:
            return Cancelled(name="BudgetStop", message=reason)
        case JobState.CANCELLED:
            return Cancelled(message=reason)
        case _:
            return Failed(message=reason)


@contextmanager
def without_heartbeat() -> Iterator[None]:
    """For flows that a flow calls: the end of each waits up to a second for Prefect's heartbeat thread (3.8).

    They are part of the caller's process, whose own heartbeat tells as much.
    """
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield
