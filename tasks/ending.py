"""How flow runs end: in a state that the flow chooses, and at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.states import Cancelled, Completed, Failed

from crucible.errors import CrucibleError
from crucible.jobs.status import JobState


class Ended(Abort):
    """The flow run has its final state. Prefect's engine leaves, and logs nothing but that."""

    def __init__(self, state: State) -> None:
        super().__init__(state.message)
        self.state = state


def end_as(state: State) -> State:
    """End a flow that is no subflow in a state: `return end_as(state)` is its last line.

    Prefect lets a flow return a state. For any state but Completed, its engine then logs a stack trace, because it
    takes the missing result for an error (https://github.com/PrefectHQ/prefect/issues/9376). So such a state is set
    here through the client, and `Ended` makes the engine leave.
    """
    if state.is_completed():
        return state
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(flow_run.id or ""), state)
    raise Ended(state)


def failing(work: Callable[[], State]) -> State:
    """The state that `work` returns; Failed, with one message, for what a person has to fix."""
    try:
        return work()
    except CrucibleError as error:
        get_run_logger().error(str(error))
        return Failed(message=str(error))


def as_prefect_state(state: JobState, reason: str) -> State:
    """The end of a job or a sweep as the Prefect UI shows it."""
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
    """For subflows in the caller's process, whose own heartbeat is enough.

    Otherwise the end of each waits up to a second for Prefect's heartbeat thread (3.8; upstream issue: none found).
    """
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield
