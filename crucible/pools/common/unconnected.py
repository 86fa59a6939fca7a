"""Attempts on machines that may not reach the Prefect server: what they have to know, and how their end shows there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from prefect.client.schemas.objects import FlowRun, State, StateType

from crucible.errors import CrucibleError
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, Outcome
from crucible.store import store_at

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


def attempt_of(flow_run: FlowRun) -> dict[str, str]:
    """The variable for the machine of an attempt; nothing for another flow run."""
    given = flow_run.parameters
    if not {"job", "attempt"} <= given.keys():
        return {}
    store = given.get("store", "default")
    return {ATTEMPT_OF: json.dumps({"job": given["job"], "attempt": given["attempt"], "store": store})}


def recorded_end(flow_run: FlowRun, environment: Mapping[str, str | None]) -> State[Any] | None:
    """The state in which the attempt's own record says that the flow run ended; None where nothing says so.

    `environment`: of the machine; its `CRUCIBLE_STORE` is the store that is meant by "default".
    """
    given = flow_run.parameters
    store = str(given.get("store", "default"))
    address = environment.get("CRUCIBLE_STORE") if store == "default" else store
    if not {"job", "attempt"} <= given.keys() or not address:
        return None
    try:
        outcome = Job.open(store_at(address), str(given["job"])).attempt(int(given["attempt"])).read_outcome()
    except (CrucibleError, ValueError):
        return None
    return None if outcome is None or outcome.decided_by != "agent" else _as_state(outcome)


def _as_state(outcome: Outcome) -> State[Any]:
    kind, name = _ENDS.get(outcome.end_reason, (StateType.CANCELLED, "Interrupted"))
    message = f"{outcome.message} (step {outcome.committed_step} committed; its machine did not reach this server)"
    return State(type=kind, name=name, message=message)
