"""A damaged record costs its own job at most: a message that names the object, no waiting for ever, cancellable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import pytest

from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, Limits, StopRequest
from crucible.jobs.status import JobState, status_of
from crucible.store import Store
from crucible.supervision.launcher import Hint, PoolSays
from crucible.supervision.retry_policy import Placement
from crucible.supervision.supervisor import Supervision
from tests.faults.small_jobs import new_job
from tests.faults.world import Listening, Pool, World, alive_for, ends

Damage = Callable[[Path], object]


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7] if path.exists() else b'{"max_att')


def empty(path: Path) -> None:
    path.write_bytes(b"")


def wrong_type(path: Path) -> None:
    path.write_text('["not", "a", "record"]')


def gone(path: Path) -> None:
    path.unlink()


def directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)
    (path / "in the way").write_text("")


def folder(job: Job) -> Path:
    return Path(urlparse(job.store.uri).path)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def job(store: Store) -> Job:
    found = new_job(store)
    found.set_limits(Limits(max_cost_usd=9.0))
    return found


def run(job: Job, world: World, pool: Pool, listener: Listening, **fields: object) -> Supervision:
    return Supervision(
        job,
        pool,
        [Placement("local")],
        listener,
        sleep=world.sleep,
        clock=world.clock,
        **fields,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("damage", [torn, empty, wrong_type, directory])
@pytest.mark.parametrize("record", ["limits/0001.json", "job.json", "supervisors/0001.json"])
def test_what_the_job_cannot_do_without_ends_it_with_a_message(
    job: Job, world: World, record: str, damage: Damage
) -> None:
    """The record breaks while attempt 1 trains; the attempt is asked to save."""
    pool, listener = Pool(world, {1: alive_for(900, (901, ends("completed")))}), Listening()
    world.after(50, lambda: damage(folder(job) / record))
    if record == "job.json":  # read once, when the supervisor begins
        damage(folder(job) / record)
    status = run(job, world, pool, listener).run()
    assert status.state is JobState.FAILED
    assert record in status.reason
    assert f"crucible jobs continue {job.job_id}" in status.reason
    assert status_of(job) == status
    assert world.time < 1100, "within seconds"
    if pool.born:
        request = job.attempt(1).read_stop_request()
        assert request is not None
        assert record in request.reason


@pytest.mark.parametrize("record", ["launch", "outcome"])
@pytest.mark.parametrize("damage", [torn, directory])
def test_a_damaged_record_of_an_attempt_is_named(job: Job, world: World, record: str, damage: Damage) -> None:
    """Found by the supervisor that starts again while the attempt is not over."""
    first = Pool(world, {1: alive_for(900)})
    world.after(30, _kill)
    with pytest.raises(Killed):
        run(job, world, first, Listening()).run()
    damage(folder(job) / f"attempts/0001/{record}.json")
    status = run(job, world, first, Listening()).run()
    assert status.state is JobState.FAILED
    assert f"attempts/0001/{record}.json" in status.reason
    assert first.born == [1]


def test_a_launch_that_was_deleted_is_named(job: Job, world: World) -> None:
    pool = Pool(world, {1: alive_for(900)})
    world.after(30, _kill)
    with pytest.raises(Killed):
        run(job, world, pool, Listening()).run()
    gone(folder(job) / "attempts/0001/launch.json")
    status = run(job, world, pool, Listening()).run()
    assert status.state is JobState.FAILED
    assert "attempts/0001/launch.json is missing" in status.reason


def test_foreign_records_that_look_like_an_attempt_are_named(job: Job, world: World) -> None:
    strange = folder(job) / "attempts/0007"
    strange.mkdir(parents=True)
    (strange / "heartbeat.json").write_text('{"sequence": 1, "phase": "training"}')
    status = run(job, world, Pool(world, {}), Listening()).run()
    assert status.state is JobState.FAILED
    assert "attempts/0007/launch.json is missing" in status.reason


def test_an_empty_folder_among_the_attempts_is_no_attempt(job: Job, world: World) -> None:
    (folder(job) / "attempts/0001").mkdir(parents=True)
    (folder(job) / "attempts/notes").mkdir()
    pool = Pool(world, {1: alive_for(5, (6, ends("completed")))})
    assert run(job, world, pool, Listening()).run().state is JobState.COMPLETED
    assert pool.born == [1]


@pytest.mark.parametrize("record", ["attempts/0001/heartbeat.json", "attempts/0001/claim.json", "status.json"])
@pytest.mark.parametrize("damage", [torn, empty, wrong_type])
def test_what_the_job_can_do_without_is_reported_and_passed_over(
    job: Job, world: World, record: str, damage: Damage
) -> None:
    """By a supervisor that starts again; the attempt goes on and ends well."""
    pool, listener = Pool(world, {1: alive_for(60, (61, ends("completed")))}), Listening()
    world.after(12, _kill)
    with pytest.raises(Killed):
        run(job, world, pool, Listening()).run()
    damage(folder(job) / record)
    assert run(job, world, pool, listener).run().state is JobState.COMPLETED
    if "claim" not in record:  # whoever has a heartbeat has no need of its claim
        assert any("without a damaged record" in said and record in said for said in listener.messages)


def test_the_launch_of_an_attempt_that_is_over_can_be_lost(job: Job, world: World) -> None:
    pool = Pool(world, {1: alive_for(5, (6, ends("interrupted"))), 2: alive_for(5, (6, ends("completed", 20)))})
    world.after(12, lambda: (empty(folder(job) / "attempts/0001/launch.json"), _kill()))
    with pytest.raises(Killed):
        run(job, world, pool, Listening()).run()
    assert run(job, world, pool, Listening()).run().state is JobState.COMPLETED
    assert pool.born == [1, 2]


def test_a_job_with_a_damaged_record_is_cancelled_within_seconds(job: Job, world: World) -> None:
    """The attempt's outcome is a folder: it can be neither read nor written."""
    pool = Pool(world, {}, hints={0: Hint(PoolSays.WAITING)})
    cancel = StopRequest(end_reason=EndReason.CANCELLED, reason="cancelled")
    stops = run(job, world, pool, Listening(), stop_requested=lambda: cancel if world.time > 1030 else None)
    world.after(30, lambda: directory(folder(job) / "attempts/0001/outcome.json"))
    status = stops.run()
    assert status.state in (JobState.CANCELLED, JobState.FAILED)
    assert world.time <= 1035


def test_a_job_whose_records_break_as_it_is_paused_asks_its_attempt_to_save(job: Job, world: World) -> None:
    pool, listener = Pool(world, {1: alive_for(900)}), Listening()
    pause = StopRequest(end_reason=EndReason.INTERRUPTED, reason="paused")
    world.after(30, lambda: directory(folder(job) / "attempts/0001/outcome.json"))
    stops = run(job, world, pool, listener, stop_requested=lambda: pause if world.time >= 1030 else None)
    assert stops.run().state is JobState.PAUSED
    assert job.attempt(1).read_stop_request() == pause
    assert any("attempts/0001/outcome.json" in said for said in listener.messages)


class Killed(BaseException):
    """The supervisor's process is gone."""


def _kill() -> None:
    raise Killed
