from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.exceptions import TerminationSignal

import tasks.stopping
import tasks.supervising
from crucible.contract import StopReason
from crucible.errors import StoreRefused
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, JobSpec, StopRequest
from crucible.jobs.status import JobState, JobStatus
from crucible.placement.choice import Choice
from crucible.store import Store
from tasks.stopping import StopWatch
from tasks.supervising import SupervisedJob
from tests.faults.faulty_store import FaultyStore


def test_a_stop_is_not_interrupted_by_the_request_that_it_serves(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's SIGTERM comes first, and the request that explains it is seen while the attempt saves."""
    spec = JobSpec(job_id="demo")
    Job.create(store, spec)
    looks = threading.Semaphore(0)

    def cancelled() -> StopRequest:
        looks.release()
        return StopRequest(end_reason=EndReason.CANCELLED, reason="cancelled in Prefect")

    class Supervision:
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            pass

        def run(self) -> JobStatus:
            raise TerminationSignal(signal.SIGTERM)

        def stop(self, request: StopRequest, wait_seconds: float) -> JobStatus:
            for _ in range(3):
                assert looks.acquire(timeout=120)
            return JobStatus(state=JobState.CANCELLED, reason=request.reason, supervisor=1)

    def terminate(number: int, frame: object) -> None:
        raise TerminationSignal(signal.SIGTERM)

    def forgetful(watch: StopWatch) -> StopRequest | None:  # asks each time, so that looks can be counted
        watch.request = tasks.stopping.requested_in_prefect()
        return watch.request

    monkeypatch.setattr(tasks.stopping, "requested_in_prefect", cancelled)
    monkeypatch.setattr(StopWatch, "requested", forgetful)
    monkeypatch.setattr(tasks.stopping, "flow_run", SimpleNamespace(id="1"))
    monkeypatch.setattr(tasks.supervising, "Supervision", Supervision)
    monkeypatch.setattr(tasks.supervising, "get_run_logger", lambda: None)
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with StopWatch(look_seconds=0.05) as watch:
            status = SupervisedJob(Job(store, "demo"), spec, store.uri, watch).run_attempts(
                Choice(placements=[], reason=""), SimpleNamespace()
            )
    finally:
        signal.signal(signal.SIGTERM, before)

    assert status.state is JobState.CANCELLED


def test_a_flow_without_an_agent_stops_when_its_container_is_asked_to(tmp_path: Path) -> None:
    """Nobody else there reads the file into which the container's first process puts the request."""

    def terminate(number: int, frame: object) -> None:
        raise TerminationSignal(signal.SIGTERM)

    file = tmp_path / "stop.json"

    def work() -> None:
        StopReason("container", "the container was asked to stop (SIGTERM)").write(file)
        threading.Event().wait(60)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        tasks.stopping.stop_with_the_container({"CRUCIBLE_STOP_FILE": str(file)})
        with pytest.raises(TerminationSignal):
            work()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_completed_job_goes_on_where_estimates_cannot_learn_from_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(operation: str, key: str) -> None:
        raise StoreRefused("access denied")

    warnings = list[str]()
    logger = SimpleNamespace(warning=lambda text, *values: warnings.append(text % values))
    monkeypatch.setattr(tasks.supervising, "get_run_logger", lambda: logger)
    spec = JobSpec(job_id="demo")
    SupervisedJob(Job(FaultyStore(store, refuse), "demo"), spec, store.uri, StopWatch()).remember()
    assert warnings == ["estimates learn nothing from job demo: access denied"]


def test_a_stop_request_to_the_job_reaches_a_stage_that_runs_as_a_job_of_its_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stage's supervisor reads the stage's records, and asks the watch; the request is carried out once."""
    job = Job.create(store, JobSpec(job_id="demo"))
    monkeypatch.setattr(tasks.stopping, "requested_in_prefect", lambda: None)
    monkeypatch.setattr(tasks.stopping, "flow_run", SimpleNamespace(id="run"))
    request = StopRequest(end_reason=EndReason.CANCELLED, reason="enough")
    watch = StopWatch(job)
    with watch.polled():
        assert watch.requested() is None
        job.request_stop(request, "run")
        assert watch.requested() == request
    watch.carried_out()
    assert StopWatch(job).requested() is None, "the same flow run, started again, is not to stop for it"


def test_a_stop_request_that_is_damaged_is_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job.create(store, JobSpec(job_id="demo"))
    monkeypatch.setattr(tasks.stopping, "requested_in_prefect", lambda: None)
    monkeypatch.setattr(tasks.stopping, "flow_run", SimpleNamespace(id="run"))
    watch = StopWatch(job)
    assert watch.requested() is None
    job.store.write("stops/run.json", b'{"end_reas')
    request = watch.requested()
    assert request is not None
    assert request.end_reason is EndReason.INTERRUPTED
    assert "stops/run.json" in request.reason
