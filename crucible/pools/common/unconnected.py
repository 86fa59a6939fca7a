"""Attempts on machines that may not reach the Prefect server: what they have to know, and how their end shows there."""

from __future__ import annotations

import json
from typing import Any

from prefect.client.schemas.objects import FlowRun, State, StateType

from crucible.jobs.job import Attempt
from crucible.jobs.records import EndReason, Outcome

ATTEMPT_OF = "CRUCIBLE_ATTEMPT_OF"
"""Environment variable: job, number and store of the attempt that a machine is for, as JSON."""
COMMAND = "python -m tasks.unconnected"
"""Runs a flow run, or without a server the attempt that it is for."""
_ENDS = {
    EndReason.COMPLETED: (StateType.COMPLETED, "Completed"),
    EndReason.PAUSED: (StateType.COMPLETED, "Paused at step"),
    EndReason.FAILED: (StateType.FAILED, "Failed"),
    EndReason.BUDGET: (StateType.CANCELLED, "BudgetStop"),
    EndReason.CANCELLED: (StateType.CANCELLED, "Cancelled"),
    EndReason.SUPERSEDED: (StateType.CANCELLED, "Superseded"),
}
"""As the flow run itself would have ended; every other end is Interrupted."""


def attempt_variable(flow_run: FlowRun) -> dict[str, str]:
    """The variable for the machine of an attempt; nothing for another flow run."""
    given = flow_run.parameters
    if not {"job", "attempt"} <= given.keys():
        return {}
    store = given.get("store", "default")
    return {ATTEMPT_OF: json.dumps({"job": given["job"], "attempt": given["attempt"], "store": store})}


def recorded_end(attempt: Attempt) -> State[Any] | None:
    """The state in which an attempt's own record says that its flow run ended; None where nothing says so.

    Raises `CrucibleError` if the record cannot be read.
    """
    outcome = attempt.read_outcome()
    return None if outcome is None or outcome.decided_by != "agent" else _as_state(outcome)


def _as_state(outcome: Outcome) -> State[Any]:
    kind, name = _ENDS.get(outcome.end_reason, (StateType.CANCELLED, "Interrupted"))
    message = f"{outcome.message} (step {outcome.committed_step} committed; its machine did not reach this server)"
    return State(type=kind, name=name, message=message)
