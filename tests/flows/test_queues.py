"""Supervisors and attempts share a pool and not their slots."""

from __future__ import annotations

import asyncio
import logging
import uuid

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun

from crucible.local.provision import queue_slots
from tasks import queues
from tasks.queues import AttemptQueue
from tests.waiting import until


@flow(name="waits-for-a-slot")
def waits() -> None:
    """Never run."""


def two_runs(pool: str) -> tuple[FlowRun, FlowRun]:
    """A supervisor's and an attempt's, each in its queue of a pool that a person limited to 1."""

    async def create() -> tuple[FlowRun, FlowRun]:
        async with get_client() as client:
            await client.create_work_pool(WorkPoolCreate(name=pool, type="process", concurrency_limit=1))
            flow_id = await client.create_flow(waits)
            runs = []
            for queue in ("supervisors", "attempts"):
                name = f"{pool}-{queue}"
                deployment = await client.create_deployment(flow_id, name, work_pool_name=pool, work_queue_name=queue)
                run = await client.create_flow_run_from_deployment(deployment)
                runs.append(await client.read_flow_run(run.id))
            return runs[0], runs[1]

    return asyncio.run(create())


def test_a_limit_on_the_supervisors_own_pool_becomes_one_of_the_attempts(
    prefect_api: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = f"pool-{uuid.uuid4().hex[:8]}"
    supervisor, attempt = two_runs(pool)
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(supervisor.id))
    monkeypatch.setattr(queues, "get_run_logger", lambda: logging.getLogger("test"))
    with get_client(sync_client=True) as client:
        AttemptQueue().keep_supervisors_out(attempt)
        assert client.read_work_pool(pool).concurrency_limit is None
        assert attempt.work_queue_id is not None
        assert client.read_work_queue(attempt.work_queue_id).concurrency_limit == 1

        # The limit is set while the attempt waits.
        client.update_work_pool(pool, WorkPoolUpdate(concurrency_limit=1))
        assert AttemptQueue().slots(attempt) is None, "no worker serves the pool: nothing to wait for"
        assert client.read_work_pool(pool).concurrency_limit is None

        # Another pool's limit is its own affair.
        other = f"{pool}-other"
        _, elsewhere = two_runs(other)
        AttemptQueue().keep_supervisors_out(elsewhere)
        assert client.read_work_pool(other).concurrency_limit == 1


def test_a_queue_that_no_worker_polls_is_unserved_from_the_second_look(prefect_api: str) -> None:
    pool = f"pool-{uuid.uuid4().hex[:8]}"
    _, attempt = two_runs(pool)
    at = 1.0
    queue = AttemptQueue(lambda: at)
    queue.slots(attempt)
    assert not queue.unserved, "a worker that is just starting gets the time to poll"
    at += queues.LOOK_SECONDS
    queue.slots(attempt)
    assert queue.unserved

    def served() -> bool:
        nonlocal at
        at += queues.LOOK_SECONDS
        queue.slots(attempt)
        return not queue.unserved

    with get_client(sync_client=True) as client:
        client.get_scheduled_flow_runs_for_work_pool(pool)  # as a worker polls
    until(served)


@pytest.mark.parametrize(
    ("memory_gib", "cores", "supervisors", "attempts"),
    [(2.0, 2, 4, 1), (7.5, 2, 9, 2), (64.0, 16, 80, 16), (16.0, 64, 20, 10), (0.5, 1, 4, 1)],
)
def test_slots_follow_memory_and_cores(memory_gib: float, cores: int, supervisors: int, attempts: int) -> None:
    assert queue_slots(memory_gib, cores) == {"supervisors": supervisors, "attempts": attempts}
