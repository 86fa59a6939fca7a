"""Dead supervisors are restarted: by their own server's restarter alone, whatever other records look like."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import Cancelling, Crashed, Paused, Running

from blocks.store import Store as StoreBlock
from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, StopRequest, now
from crucible.jobs.status import JobState, JobStatus, status_of
from crucible.store import Store, store_at
from crucible.supervision.heartbeat import (
    FOLDER,
    HeartbeatWriter,
    SupervisorHeartbeat,
    is_supervised,
    supervisor_heartbeats,
)
from crucible.supervision.other_stores import OtherStores
from crucible.supervision.prefect_server import server_id
from crucible.supervision.restarter import SILENT_SECONDS, Restarter
from crucible.supervision.stop_job import stop_job
from tests.faults.small_jobs import claimed, launched, new_job
from tests.faults.world import World
from tests.supervision.deployed import deployed_run, state_of
from tests.waiting import until


def leave_heartbeat(store: Store, run: str, subject: str, server: str = "", folder: str = FOLDER) -> None:
    """As a process that died leaves it."""
    record = SupervisorHeartbeat(flow_run_id=run, subject=subject, server=server, at=now() - timedelta(minutes=5))
    store.write_model(f"{folder}/{run}.json", record)


@pytest.fixture
def restart(store: Store, prefect_api: str) -> Callable[[], list[str]]:
    """Looks until every heartbeat has been silent for long enough."""
    world = World()
    restarter = Restarter(store, server_id(), world.clock)

    def look() -> list[str]:
        restarter.look()
        world.sleep(SILENT_SECONDS)
        return restarter.look()

    return look


def test_a_server_knows_itself(prefect_api: str) -> None:
    assert server_id() == server_id() != ""


def test_only_its_own_servers_runs_are_touched_and_bad_records_hide_no_other(
    store: Store, restart: Callable[[], list[str]]
) -> None:
    mine, before = deployed_run(Running()), deployed_run(Running())
    leave_heartbeat(store, mine, "mine", server_id())
    leave_heartbeat(store, before, "from-an-earlier-release", folder="presence")
    others = {str(uuid.uuid4()): "theirs", str(uuid.uuid4()): ""}
    for run, server in others.items():
        leave_heartbeat(store, run, "other", server)
    damaged = deployed_run(Cancelling())
    leave_heartbeat(store, damaged, "damaged", server_id())
    new_job(store, "damaged").supervise(damaged)
    store.write("jobs/damaged/supervisors/0001.json", b'{"number')
    deleted = str(uuid.uuid4())
    leave_heartbeat(store, deleted, "deleted-in-prefect", server_id())
    leave_heartbeat(store, "no-uuid", "strange", server_id())
    for name, text in {"torn": '{"flow_run', "list": "[]", "empty": ""}.items():
        store.write(f"{FOLDER}/{name}.json", text.encode())

    assert sorted(restart()) == ["from-an-earlier-release", "mine"]

    assert (state_of(mine), state_of(before)) == (StateType.SCHEDULED, StateType.SCHEDULED)
    left = {record.flow_run_id for record in supervisor_heartbeats(store)}
    assert left >= {*others, mine, before}
    assert not left & {deleted, damaged}


def test_a_run_cancelled_after_its_process_died_lets_its_attempt_save(
    store: Store, restart: Callable[[], list[str]]
) -> None:
    run = deployed_run(Cancelling())
    job = new_job(store)
    job.supervise(run)
    attempt = claimed(job, 1)
    leave_heartbeat(store, run, job.job_id, server_id())

    assert restart() == []

    request = attempt.read_stop_request()
    assert request is not None
    assert request.end_reason is EndReason.CANCELLED
    assert status_of(job).state is JobState.CANCELLED  # type: ignore[union-attr]
    assert supervisor_heartbeats(store) == []


def test_a_run_paused_after_its_process_died_is_paused_and_not_cancelled(
    store: Store, restart: Callable[[], list[str]]
) -> None:
    run = deployed_run(Paused())
    job = new_job(store)
    running(job, run)
    claimed(job, 1)
    leave_heartbeat(store, run, job.job_id, server_id())

    assert restart() == []

    assert status_of(job).state is JobState.PAUSED  # type: ignore[union-attr]


def test_stages_and_trials_of_a_dead_run_that_is_cancelled_save_too(
    store: Store, restart: Callable[[], list[str]]
) -> None:
    """They are jobs of the same flow run, which itself may never have become the supervisor of its own job."""
    run = deployed_run(Cancelling())
    stage, other = new_job(store, "mine-preprocess"), new_job(store, "mine-too")
    stage.supervise(run)
    other.supervise("another run")
    asked, left = claimed(stage, 1), claimed(other, 1)
    leave_heartbeat(store, run, "mine", server_id())

    assert restart() == []

    request = asked.read_stop_request()
    assert request is not None
    assert request.end_reason is EndReason.CANCELLED
    assert left.read_stop_request() is None
    assert supervisor_heartbeats(store) == []


STOP = StopRequest(end_reason=EndReason.CANCELLED, reason="enough")


def running(job: Job, flow_run_id: str) -> None:
    supervisor = job.supervise(flow_run_id)
    status = JobStatus(state=JobState.RUNNING, reason="", supervisor=supervisor.number, flow_run_id=flow_run_id)
    job.store.write_model("status.json", status)


def test_a_job_without_a_supervisor_is_stopped_here(store: Store) -> None:
    job = new_job(store)
    with pytest.raises(ConfigError, match="never started"):
        stop_job(job, STOP)
    running(job, "a")
    assert stop_job(job, STOP) == ("nothing was running; the job is stopped", None)
    running(job, "b")
    waits = launched(job, 1)
    assert stop_job(job, STOP).attempt == 1
    outcome = waits.read_outcome()
    assert outcome is not None
    assert outcome.end_reason is EndReason.CANCELLED
    with pytest.raises(ConfigError, match="it is cancelled"):
        stop_job(job, STOP)


def test_a_supervisor_that_is_there_is_asked(store: Store) -> None:
    job = new_job(store)
    running(job, "flow-run")
    with HeartbeatWriter(store, "flow-run", job.job_id):
        while not supervisor_heartbeats(store):
            pass
        assert stop_job(job, STOP) == ("its supervisor is asked to stop", None)
        assert job.read_stop_request("flow-run") == STOP
    assert status_of(job).state is JobState.RUNNING  # type: ignore[union-attr]  # the supervisor's to say


def test_a_job_that_another_jobs_flow_run_supervises_is_stopped_between_two_attempts(store: Store) -> None:
    """A stage, or a trial: the heartbeat names the job or the sweep that it belongs to."""
    stage, whole = new_job(store, "mine-preprocess"), new_job(store, "mine")
    running(stage, "flow-run")
    with HeartbeatWriter(store, "flow-run", "mine"):
        until(lambda: supervisor_heartbeats(store))
        assert stop_job(stage, STOP) == ("its supervisor is asked to stop", None)
        assert stage.read_stop_request("flow-run") == STOP
        assert status_of(stage).state is JobState.RUNNING  # type: ignore[union-attr]  # the supervisor's to say
        stop_job(whole, STOP)  # which has no supervisor of its own before its first attempt
        assert whole.read_stop_request("flow-run") == STOP
        done = JobStatus(state=JobState.COMPLETED, reason="", supervisor=1, flow_run_id="flow-run")
        stage.store.write_model("status.json", done)
        with pytest.raises(ConfigError, match="it is completed"):
            stop_job(stage, STOP)


@pytest.mark.parametrize("moves", [True, False])
def test_who_is_there_is_told_by_a_heartbeat_that_moves_whatever_its_clock_says(store: Store, moves: bool) -> None:
    leave_heartbeat(store, "run", "job")
    key = f"{FOLDER}/run.json"

    def beats(_seconds: float) -> None:
        if moves:
            store.write_json(key, json.loads(store.read(key)) | {"sequence": 7})

    assert is_supervised(store, "job", wait=beats) is moves
    assert not is_supervised(store, "another", wait=beats)


def test_jobs_in_other_stores_are_restarted_too(
    tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CRUCIBLE_STORE", (tmp_path / "default").as_uri())
    named, addressed, default = (store_at((tmp_path / name).as_uri()) for name in ("named", "addressed", "default"))
    block = f"elsewhere-{uuid.uuid4().hex[:6]}"
    StoreBlock(root=named.uri).save(block)
    runs = {
        name: deployed_run(Crashed() if name == "named" else Running(), parameters={"store": reference})
        for name, reference in {"named": block, "addressed": addressed.uri, "default": "default"}.items()
    }
    deployed_run(Running(), parameters={"store": "s3:/no-address"})
    deployed_run(Running(), parameters={"store": "file:///proc/nowhere"})
    for store, name in ((named, "named"), (addressed, "addressed"), (default, "default")):
        leave_heartbeat(store, runs[name], name, server_id())
    world = World()
    stores = OtherStores(world.clock)
    assert stores.look() == []
    world.sleep(SILENT_SECONDS)
    assert sorted(stores.look()) == ["addressed", "named"]
    assert [state_of(runs[name]) for name in ("named", "addressed")] == [StateType.SCHEDULED] * 2
    assert state_of(runs["default"]) == StateType.RUNNING, "it has a restarter of its own"
