"""The pool on the real Prefect server with the real ECS worker, on the rehearsed AWS."""

from __future__ import annotations

from crucible.aws.session import Aws
from tests.aws.conftest import Pool


def test_a_flow_run_runs_on_a_spot_machine_with_its_gpu_tags_and_logs(pool: Pool, aws: Aws) -> None:
    run = pool.submit(entrypoint="tests/aws/flow_on_ec2.py:where", job="job-1", labels={"team": "vision"})
    pool.wait_for_state(run, "Completed")
    task = pool.wait_for_task(run, "STOPPED")
    assert task["exit_code"] == 0
    assert task["lifecycle"] == "spot"
    assert len(task["gpus"]) == 1
    tags = task["tags"]
    assert [tags[f"crucible:{name}"] for name in ("job", "stage", "project", "owner")] == [
        "job-1",
        "train",
        "crucible",
        "tests",
    ]
    assert tags["team"] == "vision"  # a run's own label is added, and replaces none of the pool's
    events = aws.client("logs").get_log_events(
        logGroupName=pool.state.outputs["LogGroup"], logStreamName=f"task/prefect/{task['id']}"
    )["events"]
    assert any("'lifecycle': 'spot'" in event["message"] for event in events)
