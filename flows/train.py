"""`train/<pool>`: one attempt at a job, on whatever machine the pool gave it.

Started by the supervising flow `train-nanogpt`, which owns retries; Prefect's own are off, because they would run
inside the same dying machine.
"""

from __future__ import annotations

from typing import Annotated

from prefect import flow
from prefect.client.schemas.objects import State, StateType
from prefect.states import Cancelled, Completed, Failed
from pydantic import Field

from crucible.errors import FencedOut
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, Outcome
from crucible.settings import MOST
from flows.forms import described
from flows.parameters import StoreName
from tasks.console import outlive_the_console
from tasks.ending import end_as
from tasks.storage import open_store
from tasks.training import train_attempt


@flow(name="train", log_prints=False, persist_result=False)
@described
def train(
    job: Annotated[str, Field(description="The job's id, as `crucible jobs ls` shows it.")],
    attempt: Annotated[int, Field(ge=1, le=MOST, description="The attempt's number; decided by the supervising flow.")],
    store: StoreName = "default",
) -> State:
    """Run one attempt: restore, train, commit, record how it ended."""
    outlive_the_console()
    try:
        outcome = train_attempt(Job.open(open_store(store), job), attempt)
    except FencedOut as error:
        return end_as(Cancelled(name="Superseded", message=str(error)))
    return end_as(as_state(outcome))


def as_state(outcome: Outcome) -> State:
    """How an attempt's end shows in the Prefect UI."""
    message = f"{outcome.message} (step {outcome.committed_step} committed)"
    match outcome.end_reason:
        case EndReason.COMPLETED:
            return Completed(message=message)
        case EndReason.PAUSED:
            return Completed(name="Paused at step", message=message)
        case EndReason.FAILED:
            return Failed(message=outcome.message)
        case EndReason.CANCELLED:
            return Cancelled(message=message)
        case EndReason.BUDGET:
            return Cancelled(name="BudgetStop", message=message)
        case EndReason.SUPERSEDED:
            return Cancelled(name="Superseded", message=outcome.message)
        case _:
            # Not FAILED (nothing is wrong with the work) and not COMPLETED (it is not done).
            return State(type=StateType.CANCELLED, name="Interrupted", message=message)
