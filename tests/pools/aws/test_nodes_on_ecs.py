"""Two ECS tasks train one attempt on the rehearsed AWS; the machine of one of them is lost in the middle."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun

from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, Launch, Outcome
from crucible.pools.aws.nodes import NODE_TAG, create_tasks
from tests.pools.aws.conftest import PULL_STEPS, Pool
from tests.tasks.training_on_nodes import ENDLESS, Death, new_job, require_same_weights
from tests.waiting import until


def submit(pool: Pool, job: Job, number: int, stop_at: int | None = None) -> FlowRun:
    """The flow run of an attempt on two nodes, as the supervising flow starts it."""
    job.decide(Launch(number=number, pool="ec2-spot", reason="test", nodes=2, usd_per_hour=2.0, stop_at_step=stop_at))
    deployment = pool.client.create_deployment(
        flow_id=pool.client.create_flow_from_name("train"),
        name=f"nodes-{uuid.uuid4().hex[:8]}",
        work_pool_name=pool.name,
        entrypoint="flows/train.py:train",
        pull_steps=PULL_STEPS,
        job_variables={"nodes": "2", "job": f"{job.job_id}-{number}"},
    )
    parameters = {"job": job.job_id, "attempt": number, "store": job.root.uri}
    return pool.client.create_flow_run_from_deployment(deployment, parameters=parameters)


def outcome(job: Job, number: int) -> Outcome:
    until(lambda: job.attempt(number).read_outcome(), 900)
    found = job.attempt(number).read_outcome()
    assert found is not None
    return found


def further(pool: Pool, job: Job, number: int) -> dict[str, Any]:
    """The task of the second node."""
    tasks = pool.cloud.state()["tasks"]
    return next(t for t in tasks if NODE_TAG in t["tags"] and t["tags"]["crucible:job"] == f"{job.job_id}-{number}")


@pytest.mark.slow
def test_a_machine_that_is_lost_costs_time_and_no_bit(pool: Pool, tmp_path: Path) -> None:
    death = Death.planned(pool.log.parent)
    killed = new_job(tmp_path / "killed", max_iters=ENDLESS, checkpoint_interval_seconds=0.1)
    submit(pool, killed, 1)
    types: list[str] = []

    def reclaim() -> None:
        lost = further(pool, killed, 1)["instance"]
        types.extend(machine["type"] for machine in pool.cloud.state()["instances"] if machine["id"] == lost)
        pool.cloud.fault("reclaim", instance=lost)

    death.strike(reclaim)
    ended = outcome(killed, 1)
    assert (ended.end_reason, ended.step) == (EndReason.INTERRUPTED, death.step), ended
    assert "node 1" in ended.message
    claim, report = killed.attempt(1).read_claim(), killed.attempt(1).read_node_report(1)
    assert claim is not None
    assert report is not None
    assert ended.further_instances == [report.instance] == types
    assert ended.usd_per_hour == pytest.approx((claim.usd_per_hour or 0) / 2 + (report.usd_per_hour or 0)), "of both"
    last = ended.committed_step + 20
    submit(pool, killed, 2, stop_at=last)
    assert outcome(killed, 2).end_reason is EndReason.PAUSED
    claim = killed.attempt(2).read_claim()
    assert claim is not None
    assert claim.nodes == 2

    undisturbed = new_job(tmp_path / "undisturbed", max_iters=ENDLESS)
    submit(pool, undisturbed, 1, stop_at=last)
    assert outcome(undisturbed, 1).end_reason is EndReason.PAUSED
    require_same_weights(undisturbed, killed, last, death)


class Ecs:
    """An ECS that starts so many tasks and refuses the next."""

    def __init__(self, room: int) -> None:
        self.room, self.requests, self.stopped = room, list[dict[str, Any]](), list[str]()

    def create(self, _client: Any, request: dict[str, Any]) -> dict[str, str]:
        if len(self.requests) == self.room:
            raise RuntimeError("Failed to run ECS task: RESOURCE:GPU")
        self.requests.append(request)
        return {"taskArn": f"task-{len(self.requests)}", "clusterArn": "cluster"}

    def stop_task(self, cluster: str, task: str, reason: str) -> None:
        self.stopped.append(task)


REQUEST = {
    "overrides": {
        "containerOverrides": [{"name": "prefect", "environment": [{"name": "CRUCIBLE_NODES", "value": "3"}]}]
    },
    "tags": [{"key": "prefect.io/flow-run-id", "value": "run"}, {"key": "crucible:project", "value": "p"}],
}


def test_all_nodes_start_with_the_costs_of_the_run_and_without_its_identity() -> None:
    ecs = Ecs(room=3)
    assert create_tasks(ecs.create, ecs, REQUEST)["taskArn"] == "task-1"
    first, *others = ecs.requests
    assert first is REQUEST
    for rank, request in enumerate(others, 1):
        (container,) = request["overrides"]["containerOverrides"]
        assert container["command"] == ["python", "-m", "tasks.node"]
        assert {"name": "CRUCIBLE_NODE_RANK", "value": str(rank)} in container["environment"]
        assert request["startedBy"] == "run"
        assert {tag["key"] for tag in request["tags"]} == {"crucible:project", NODE_TAG}


def test_none_is_left_when_one_cannot_start() -> None:
    ecs = Ecs(room=2)
    with pytest.raises(RuntimeError, match="RESOURCE:GPU"):
        create_tasks(ecs.create, ecs, REQUEST)
    assert ecs.stopped == ["task-1", "task-2"]
