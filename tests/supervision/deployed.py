"""Flow runs of a deployment, in any state: nothing runs them."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType


@flow(name="pretends-to-supervise")
def pretends() -> None:
    """Never run."""


def deployed_run(state: State | None, **deployment: Any) -> str:
    """A flow run of a deployment, in that state; `deployment` says more of it, such as its work pool."""

    async def create() -> str:
        async with get_client() as client:
            flow_id = await client.create_flow(pretends)
            made = await client.create_deployment(flow_id, f"d-{uuid.uuid4().hex[:8]}", **deployment)  # type: ignore[arg-type]
            run = await client.create_flow_run_from_deployment(made)
            if state is not None:
                await client.set_flow_run_state(run.id, state, force=True)
            return str(run.id)

    return asyncio.run(create())


def state_of(run: str) -> StateType:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(uuid.UUID(run)).state
    assert state is not None
    return state.type


def set_state(run: str, state: State) -> None:
    """Put a flow run into a state, whatever Prefect's rules say."""
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(uuid.UUID(run), state, force=True)
