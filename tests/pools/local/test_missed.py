"""Scheduled runs that were missed while nothing was on: a real server, the real worker in this process."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from datetime import timedelta

import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.states import Scheduled
from prefect.types._datetime import now

from crucible.pools.local import prewarmed
from crucible.pools.local.missed import KEEP_ALL, SKIPPED
from crucible.pools.local.worker import TYPE, LocalWorker

POOL = f"missed-{uuid.uuid4().hex[:6]}"
TEMPLATE = {"job_configuration": {"command": "true"}, "variables": {"type": "object", "properties": {}}}
HOUR = timedelta(hours=1)
WAITING = ("Scheduled", "Late")


@flow(name="hourly")
def hourly() -> None:
    """Never run: its process is the program `true`."""


async def deployed(client: PrefectClient, name: str, *tags: str) -> uuid.UUID:
    """An hourly deployment that was due five times while the server was off."""
    flow_id, began = await client.create_flow(hourly), now("UTC") - 5 * HOUR
    schedule = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=HOUR, anchor_date=began), active=True)
    deployment = await client.create_deployment(
        flow_id, name, work_pool_name=POOL, tags=list(tags), schedules=[schedule]
    )
    past = {"start_time": began.isoformat(), "end_time": (began + 4.5 * HOUR).isoformat(), "min_runs": 5}
    (await client._client.post(f"/deployments/{deployment}/schedule", json=past)).raise_for_status()
    return deployment


async def states(client: PrefectClient, deployment: uuid.UUID) -> list[tuple[str, str]]:
    """Name and message of each run that was due, oldest first."""
    wanted = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
    runs = [run for run in await client.read_flow_runs(flow_run_filter=wanted) if run.expected_start_time < now("UTC")]
    runs.sort(key=lambda run: run.expected_start_time)
    return [(run.state.name, run.state.message or "") for run in runs]


async def are_waiting(client: PrefectClient, *deployments: uuid.UUID) -> bool:
    names = [name for deployment in deployments for name, _ in await states(client, deployment)]
    return not set(names).isdisjoint(WAITING)


def test_of_missed_runs_the_newest_starts_unless_all_are_wanted(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prewarmed, "apply_all", lambda _: [])  # no engine is wanted here

    async def scenario() -> None:
        async with get_client() as client:
            await client.create_work_pool(WorkPoolCreate(name=POOL, type=TYPE, base_job_template=TEMPLATE))
            usual, every = await deployed(client, "usual"), await deployed(client, "every", KEEP_ALL)
            long_ago = Scheduled(scheduled_time=now("UTC") - 9 * HOUR)
            by_hand = await client.create_flow_run_from_deployment(usual, state=long_ago)
            async with LocalWorker(work_pool_name=POOL) as worker:
                await worker.sync_with_backend()
                while await are_waiting(client, usual, every):  # the worker may have begun by itself
                    await worker.get_and_submit_flow_runs()

            *older, newest = [name for name, _ in await states(client, usual) if name]
            assert Counter(older)[SKIPPED] == 4
            assert newest != SKIPPED
            assert (await client.read_flow_run(by_hand.id)).state.name not in (SKIPPED, *WAITING)
            message = next(message for name, message in await states(client, usual) if name == SKIPPED)
            assert KEEP_ALL in message
            assert {name for name, _ in await states(client, every)}.isdisjoint({SKIPPED, *WAITING})

    asyncio.run(scenario())
