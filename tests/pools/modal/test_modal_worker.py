"""The `modal` worker as users run it: real server, worker process and SDK, on a Modal that runs on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

from prefect.states import Cancelling

from tests.pools.modal.conftest import Pool

STEADY = "echo ready; exec sleep 600"


def test_a_flow_run_is_one_sandbox_with_what_was_asked_for(pool: Pool) -> None:
    pool.modal.add_secret("paint", {"COLOUR": "green"})
    wanted = {"v1": ["H100:2"], "v2": []}
    runs = {
        backend: pool.submit(
            "echo $COLOUR $SHAPE; echo trouble >&2; exit 3",
            gpu=gpu,
            cpu=2,
            memory_mib=512,
            timeout_seconds=600,
            env={"SHAPE": "round"},
            secrets=["paint"],
            tags={"team": "vision"},
        )
        for backend, gpu in wanted.items()
    }
    for backend, run in runs.items():
        assert pool.end_of(run).startswith("CRASHED SandboxExited: The sandbox's command ended with exit code 3")
        assert "green round" in pool.wait_for_log(run, "trouble")
        (sandbox,) = pool.sandboxes(run)
        assert (sandbox.backend, sandbox.gpu_count) == (backend, 2 if wanted[backend] else 0)
        assert (sandbox.cpu_cores, sandbox.memory_mib, sandbox.timeout_seconds) == (2, 512, 600)
        assert (sandbox.tags["team"], sandbox.tags["prefect-flow-run-id"]) == ("vision", str(run.id))
        assert sandbox.name == f"flow-run-{run.id}-0"


def test_only_what_belongs_into_a_sandbox_goes_in(pool: Pool, tmp_path: Path) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM python:3.11-slim\nCOPY greeting /\n")
    (tmp_path / "greeting").write_text("hello")
    run = pool.submit("true", image=None, dockerfile=str(dockerfile), env={"MINE": "1", "PREFECT_HOME": "/asked/for"})
    assert pool.end_of(run).startswith("CRASHED SandboxExited: The sandbox's command ended with exit code 0")
    (sandbox,) = pool.sandboxes(run)
    assert "COPY greeting /" in sandbox.image
    expected = {
        "MINE",
        "PREFECT_HOME",
        "PREFECT_API_URL",
        "PREFECT_API_AUTH_STRING",
        "CRUCIBLE_MACHINE_ENDS_AT",
        "PYTHONUNBUFFERED",
    }
    others = {name for name in sandbox.env if name not in expected and not name.startswith("PREFECT__")}
    behaviour = {"PREFECT_PLUGINS_ENABLED", "PREFECT_PLUGINS_ALLOW", "PREFECT_LOGGING_TO_API_BATCH_INTERVAL"}
    behaviour |= {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY"}
    assert others == behaviour
    assert sandbox.env["PREFECT_HOME"] == "/asked/for"
    assert "very-secret" not in str(sandbox.env)


def test_each_bad_end_has_a_state_and_words_of_its_own(pool: Pool) -> None:
    modal = pool.modal
    faults = {
        "CRASHED SandboxStopped: Modal ended the sandbox: preempted": modal.preempt,
        "CRASHED SandboxStopped: Modal ended the sandbox: preempted, its machine lost": modal.lose_host,
        "CRASHED LifetimeReached: The sandbox's lifetime": modal.reach_lifetime,
        "CRASHED SandboxExited: The sandbox's command was killed (137), out of memory": modal.run_out_of_memory,
    }
    runs = [pool.submit("trap exit INT; echo ready; while :; do sleep 0.1; done", gpu=[]) for _ in faults]
    for run, fault in zip(runs, faults.values(), strict=True):
        pool.wait_for_log(run, "ready")
        fault(pool.wait_for_sandbox(run).id)
    for run, words in zip(runs, faults, strict=True):
        assert pool.end_of(run).startswith(words)


def test_each_failure_on_the_way_has_a_state_and_words_of_its_own(pool: Pool) -> None:
    pool.modal.fail_builds("no-such-package")
    pool.modal.set_capacity("B200", 0)
    broken = pool.submit("true", image="registry.example/no-such-package")
    nothing_free = pool.submit("true", gpu="B200", capacity_timeout_seconds=1)
    unknown_secret = pool.submit("true", secrets=["no-such-secret"])
    bad_tag = pool.submit("true", tags={"team": "a b"})
    second_choice = pool.submit("exit 0", gpu="B200,L4", capacity_timeout_seconds=1)

    assert pool.end_of(broken).startswith("CRASHED ImageBuildFailed: image: Modal could not build it")
    assert pool.end_of(nothing_free).startswith("CRASHED NoCapacity: gpu: Modal had none of B200 free within 1 s")
    assert pool.end_of(unknown_secret).startswith("CRASHED RequestRefused: Modal refused the request: Secret")
    assert "job variable tags: team='a b': Modal takes letters" in pool.end_of(bad_tag)
    pool.end_of(second_choice)
    assert [sandbox.gpu for sandbox in pool.sandboxes(second_choice)] == ["B200", "L4"]


def test_a_bad_token_is_told_from_an_outage_and_a_sandbox_outlasts_both(pool: Pool) -> None:
    lasting = pool.submit(STEADY)
    sandbox = pool.wait_for_sandbox(lasting)
    pool.modal.accept_token(False)
    try:
        refused = pool.submit("true")
        assert pool.end_of(refused).startswith("CRASHED TokenRefused: Modal does not accept the token")
        pool.wait_for_log(lasting, "Modal does not answer")
    finally:
        pool.modal.accept_token(True)
    pool.modal.set_down(True)
    try:
        unreachable = pool.submit("true")
        assert pool.end_of(unreachable).startswith("CRASHED ModalUnreachable: Modal's API at http")
    finally:
        pool.modal.set_down(False)
    pool.modal.lose_host(sandbox.id)
    assert pool.end_of(lasting).startswith("CRASHED SandboxStopped")


def test_cancelling_ends_the_sandbox_even_a_frozen_one(pool: Pool) -> None:
    pool.modal.set_capacity("B200", 0)
    frozen = pool.submit(STEADY, grace_seconds=1)
    queued = pool.submit(STEADY, gpu="B200")
    pool.modal.freeze(pool.wait_for_sandbox(frozen).id)
    pool.modal.wait_for(lambda views: any(view.status == "QUEUED" for view in views))
    for run in (frozen, queued):
        pool.client.set_flow_run_state(run.id, Cancelling())
    assert pool.end_of(frozen).startswith("CANCELLED")
    assert pool.end_of(queued).startswith("CANCELLED")
    for run in (frozen, queued):
        (sandbox,) = pool.sandboxes(run)
        assert sandbox.status == "TERMINATED"


def test_a_restart_waits_until_the_former_sandbox_is_gone(pool: Pool) -> None:
    run = pool.submit(STEADY, max_restarts=1)
    pool.modal.lose_host(pool.wait_for_sandbox(run).id)
    pool.modal.lose_host(pool.wait_for_sandbox(run, number=2).id)
    assert pool.end_of(run).startswith("CRASHED SandboxStopped")
    first, second = pool.sandboxes(run)
    assert second.started_at >= first.started_at + first.seconds


def test_sandboxes_of_the_same_work_never_run_side_by_side(pool: Pool) -> None:
    former = pool.submit(STEADY, exclusive_tag="job", tags={"job": "one"}, grace_seconds=1)
    pool.wait_for_sandbox(former)
    successor = pool.submit("exit 3", exclusive_tag="job", tags={"job": "one"}, grace_seconds=1)
    pool.end_of(successor)
    assert pool.end_of(former).startswith("CRASHED SandboxStopped")
    (first,), (second,) = pool.sandboxes(former), pool.sandboxes(successor)
    assert second.started_at >= first.started_at + first.seconds


def test_a_restarted_worker_finds_its_sandboxes_again(pool: Pool) -> None:
    going_on = pool.submit("echo ready; while [ ! -e go ]; do sleep 0.1; done; echo last", gpu=[], workdir=None)
    ended_meanwhile = pool.submit(STEADY)
    deleted_meanwhile = pool.submit(STEADY)
    for run in (going_on, ended_meanwhile, deleted_meanwhile):
        pool.wait_for_sandbox(run)
        pool.wait_for_log(run, "ready")
    pool.stop_worker(kill=True)
    pool.modal.lose_host(pool.wait_for_sandbox(ended_meanwhile).id)
    orphan = pool.wait_for_sandbox(deleted_meanwhile)
    pool.client.delete_flow_run(deleted_meanwhile.id)
    pool.start_worker()

    assert pool.end_of(ended_meanwhile).startswith("CRASHED SandboxStopped")
    pool.modal.wait_for(lambda views: all(view.over for view in views if view.id == orphan.id))
    pool.wait_for_log(going_on, "watches sandbox")
    pool.modal.lose_host(pool.wait_for_sandbox(going_on).id)
    pool.end_of(going_on)
    messages = pool.wait_for_log(going_on, "ready")
    assert messages.count("ready") == 1


def test_a_flow_runs_to_its_end_under_the_default_command(pool: Pool) -> None:
    run = pool.submit(None, entrypoint="tests/pools/modal/flow_on_modal.py:greet")
    assert pool.end_of(run).startswith("COMPLETED Completed")
    pool.modal.wait_for(lambda views: all(view.over for view in views))
    pool.wait_for_log(run, "printed by the flow")
    messages = pool.wait_for_log(run, "logged by the flow")
    assert len([message for message in messages if "logged by the flow" in message]) == 1
    (sandbox,) = pool.sandboxes(run)
    assert sandbox.command[:3] == ("python", "-m", "crucible.agent.entrypoint")


FOREIGN = """
import json, sys, modal
app = modal.App.lookup("crucible", create_if_missing=True)
image = modal.Image.from_registry("python:3.11-slim")
print(modal.Sandbox.create("sleep", "600", app=app, image=image, tags=json.loads(sys.argv[1])).object_id)
"""


def test_sandboxes_of_another_server_with_a_pool_of_the_same_name_are_left_alone(pool: Pool) -> None:
    tags = {
        "prefect-work-pool": pool.name,
        "prefect-work-pool-id": str(uuid4()),
        "prefect-flow-run-id": str(uuid4()),
        "prefect-attempt": "0",
        "job": "both",
    }
    environment = {**pool.env, **pool.modal.env}
    command = [sys.executable, "-c", FOREIGN, json.dumps(tags)]
    foreign = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    try:
        pool.stop_worker()
        pool.start_worker()  # looks for what was left behind
        pool.end_of(pool.submit("exit 3", exclusive_tag="job", tags={"job": "both"}, grace_seconds=1))
        abandoned = pool.submit(STEADY)
        left = pool.wait_for_sandbox(abandoned)
        pool.stop_worker(kill=True)
        pool.client.delete_flow_run(abandoned.id)
        pool.start_worker()
        pool.modal.wait_for(lambda views: all(view.over for view in views if view.id == left.id))
        assert [view.status for view in pool.modal.sandboxes() if view.id == foreign] == ["RUNNING"]
    finally:
        pool.modal.lose_host(foreign)
        pool.modal.wait_for(lambda views: all(view.over for view in views))
