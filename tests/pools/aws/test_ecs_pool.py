"""The pool on the real Prefect server with the real ECS worker, on the rehearsed AWS."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable

import psutil
from prefect.states import Cancelled, Cancelling, Crashed

from crucible.pools.aws import emergency_stop
from crucible.pools.aws.diagnosis import diagnose, of_task
from crucible.pools.aws.emergency_stop import running_tasks
from crucible.pools.aws.session import Aws
from crucible.pools.aws.status import status
from crucible.rehearsal.aws.settings import ACCOUNT
from tests.pools.aws.conftest import PATIENCE_SECONDS, Pool

SLEEP = "sleep 600"


def test_a_flow_run_runs_on_a_spot_machine_with_its_gpu_tags_and_logs(pool: Pool, aws: Aws) -> None:
    run = pool.submit(entrypoint="tests/pools/aws/flow_on_ec2.py:where", job="job-1", labels={"team": "vision"})
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
    seen = next(event["message"] for event in events if "running on" in event["message"])
    assert "'lifecycle': 'spot'" in seen
    assert "'grace': 110.0" in seen  # what the agent plans by is what ECS waits
    assert pool.state.outputs["StoreUri"] in seen


def test_a_task_sees_its_notice_and_leaves_before_the_machine_goes(pool: Pool) -> None:
    """What the agent does, in one line of shell's stead: watch the metadata, leave when told."""
    watch = (
        "import time; from crucible.agent.notices_ec2 import Ec2MetadataNotices as E; e = E(interval_seconds=0.2)\n"
        "while not (n := e.poll()): time.sleep(0.1)\n"
        "print(n.reason, flush=True)"
    )
    run = pool.submit(f"python -c {shlex.quote(watch)}")
    task = pool.wait_for_task(run)
    pool.cloud.fault("notice", seconds=60, instance=task["instance"])
    ended = pool.wait_for_task(run, "STOPPED")
    assert ended["exit_code"] == 0
    assert "EC2 will terminate this spot instance" in pool.cloud.container_log(task["id"])


def test_a_machine_lost_without_notice_leaves_no_exit_code_and_nothing_running(pool: Pool) -> None:
    run = pool.submit(SLEEP)
    task = pool.wait_for_task(run)
    pool.cloud.fault("reclaim", instance=task["instance"])
    ended = pool.wait_for_task(run, "STOPPED")
    assert ended["exit_code"] is None
    assert ended["stopped_reason"] == f"Host EC2 (instance {task['instance']}) terminated."
    assert not psutil.pid_exists(task["pid"])
    state = pool.wait_for_state(run, "Crashed").state
    assert "its machine was taken away" in str(state and state.message)


def test_a_late_event_of_a_dead_task_does_not_crash_the_live_one(pool: Pool) -> None:
    run = pool.submit(SLEEP)
    pool.wait_for_task(run)
    told = pool.cloud.fault("late_stop")
    wait_until(lambda: f"task {told['dead']} has stopped, but its flow run runs in" in pool.log.read_text())
    assert pool.wait_for_task(run)["status"] == "RUNNING"
    state = pool.client.read_flow_run(run.id).state
    assert state is not None
    assert not state.is_final()
    pool.cloud.fault("stop_task")
    pool.wait_for_task(run, "STOPPED")


def test_cancelling_a_run_stops_its_task_on_ecs(pool: Pool, aws: Aws) -> None:
    run = pool.submit(SLEEP)
    task = pool.wait_for_task(run)
    pool.client.set_flow_run_state(run.id, Cancelling())
    pool.wait_for_state(run, "Cancelled")
    pool.wait_for_task(run, "STOPPED")
    assert not psutil.pid_exists(task["pid"])
    assert running_tasks(aws.client("ecs"), pool.state.outputs["ClusterArn"], ended_too=True) == []


def test_a_run_that_waits_for_a_machine_can_be_cancelled_and_status_says_why_it_waits(pool: Pool, aws: Aws) -> None:
    pool.cloud.fault("drought")
    no_machines(pool)
    try:
        run = pool.submit(SLEEP)
        pool.wait_for_task(run, "PROVISIONING")
        wait_until(lambda: status(aws, pool.state).groups[0].troubles)
        assert "no such instance free" in status(aws, pool.state).groups[0].troubles[0]
        pool.client.set_flow_run_state(run.id, Cancelling())
        pool.wait_for_state(run, "Cancelled")
        pool.wait_for_task(run, "STOPPED")

        given_up = pool.submit(SLEEP)  # as the supervisor does when it moves the job to another pool
        pool.wait_for_task(given_up, "PROVISIONING")
        wait_until(lambda: pool.client.read_flow_run(given_up.id).infrastructure_pid)
        pool.client.set_flow_run_state(given_up.id, Cancelled())
        pool.wait_for_task(given_up, "STOPPED")
    finally:
        pool.cloud.fault("drought", on=False)


def test_without_quota_the_run_ends_and_says_which_resource_is_short(pool: Pool, aws: Aws) -> None:
    pool.cloud.fault("no_quota")
    no_machines(pool)
    try:
        run = pool.submit(SLEEP)
        pool.wait_for_task(run, "PROVISIONING")
        wait_until(lambda: status(aws, pool.state).groups[0].troubles)
        pool.cloud.fault("give_up")
        state = pool.wait_for_state(run, "Crashed").state
        assert state is not None
        assert "RESOURCE:GPU" in str(state.message)
        assert any("quota" in trouble for trouble in status(aws, pool.state).groups[0].troubles)
    finally:
        pool.cloud.fault("no_quota", on=False)


def test_a_missing_image_ends_the_run_and_is_diagnosed(pool: Pool, aws: Aws) -> None:
    run = pool.submit(SLEEP, image=f"{pool.state.outputs['ImageRepository']}:nowhere")
    ended = pool.wait_for_task(run, "STOPPED")
    state = pool.wait_for_state(run, "Crashed").state
    assert "the container image does not exist: push it" in str(state and state.message)
    described = aws.client("ecs").describe_tasks(cluster=pool.state.outputs["ClusterArn"], tasks=[ended["arn"]])
    diagnosis = of_task(described["tasks"][0])
    assert diagnosis is not None
    assert diagnosis.permanent
    assert "image does not exist" in diagnosis.summary


def test_a_missing_role_and_expired_credentials_end_the_run_with_words(pool: Pool) -> None:
    run = pool.submit(SLEEP, task_role_arn=f"arn:aws:iam::{ACCOUNT}:role/gone")
    message = str((pool.wait_for_state(run, "Crashed").state or Crashed()).message)
    assert diagnose(message).permanent
    assert "role" in diagnose(message).summary
    pool.cloud.fault("expired_credentials", whose="worker")
    try:
        run = pool.submit(SLEEP)
        message = str((pool.wait_for_state(run, "Crashed").state or Crashed()).message)
        assert "credentials have expired" in diagnose(message).summary
    finally:
        pool.cloud.fault("expired_credentials", whose="worker", on=False)


def test_the_emergency_stop_ends_tasks_machines_and_launching_until_released(pool: Pool, aws: Aws) -> None:
    run = pool.submit(SLEEP)
    task = pool.wait_for_task(run)
    stopped = emergency_stop.stop_all(aws, pool.state, save_seconds=20)
    try:
        assert [arn.rsplit("/", 1)[-1] for arn in stopped.tasks] == [task["id"]]
        assert task["instance"] in stopped.instances
        wait_until(lambda: pool.cloud.state()["instances"] == [])  # told to go is not yet gone
        assert not psutil.pid_exists(task["pid"])
        assert not status(aws, pool.state).groups[0].launching
    finally:
        emergency_stop.release(aws, pool.state)
    assert status(aws, pool.state).groups[0].launching


def no_machines(pool: Pool) -> None:
    """Take all machines away; unless the market is closed, the group starts as many again."""
    for machine in pool.cloud.state()["instances"]:
        pool.cloud.fault("reclaim", instance=machine["id"])


def wait_until(true: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
