"""What a person asks of a flow run in Prefect, and how long a paused one can be resumed."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateDetails, StateType
from prefect.exceptions import Abort
from prefect.states import Cancelling, Paused, Running

from crucible.jobs.records import EndReason
from tasks.stopping import requested_in_prefect, stay_paused
from tests.supervision.deployed import deployed_run, state_of

PAUSED_IN_THE_UI = State(
    type=StateType.PAUSED,
    name="Suspended",
    state_details=StateDetails(pause_timeout=datetime(2020, 1, 1, tzinfo=UTC), pause_reschedule=True),
)
"""With a limit that is over."""


@pytest.mark.parametrize(
    ("state", "reason"),
    [(Running(), None), (Cancelling(), EndReason.CANCELLED), (Paused(), EndReason.INTERRUPTED)],
    ids=["running", "cancelled", "paused"],
)
def test_what_a_state_asks_for(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch, state: State, reason: EndReason | None
) -> None:
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", deployed_run(state))
    request = requested_in_prefect()
    assert (request.end_reason if request else None) is reason


def test_a_paused_run_can_be_resumed_after_the_limit_that_the_ui_gave_it(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = deployed_run(PAUSED_IN_THE_UI)
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", run)
    with pytest.raises(Abort):
        stay_paused("paused in Prefect")
    with get_client(sync_client=True) as client:
        assert client.resume_flow_run(uuid.UUID(run)).status == "ACCEPT"
    assert state_of(run) is StateType.SCHEDULED, "a worker starts it anew"
