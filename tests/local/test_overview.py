"""The overview in the Prefect UI shows the jobs of every store that this server's flow runs name."""

from __future__ import annotations

import uuid
from datetime import timedelta
from pathlib import Path

import pytest
from prefect.states import Completed, Running

from blocks.store import Store as StoreBlock
from crucible.errors import StoreUnavailable
from crucible.jobs.records import now
from crucible.jobs.status import JobState
from crucible.local.overview import LEAST_SECONDS, Elsewhere
from crucible.reports.overview import OverviewReader, overview_of_all
from crucible.reports.overview_page import overview_page
from crucible.store import FileStore, ObjectInfo
from tests.faults.world import World
from tests.reports.history import Past
from tests.supervision.deployed import deployed_run, set_state


@pytest.fixture
def folder(tmp_path: Path, prefect_api: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRUCIBLE_STORE", (tmp_path / "default").as_uri())
    return tmp_path


def job_in(folder: Path, name: str, state: JobState = JobState.RUNNING) -> Past:
    past = Past(FileStore(folder), folder / "scratch", name, now=now() - timedelta(hours=1))
    past.attempt(0, 600, [500])
    past.status(state)
    return past


def shown(elsewhere: Elsewhere) -> dict[str, JobState | None]:
    return {line.job: line.state for one in elsewhere.overviews for line in one.jobs}


def test_jobs_of_a_store_block_and_of_an_address_are_on_the_page(folder: Path) -> None:
    job_in(folder / "default", "here")
    job_in(folder / "named", "there")
    job_in(folder / "addressed", "ended", JobState.COMPLETED)
    job_in(folder / "unused", "unknown")
    block = f"overview-{uuid.uuid4().hex[:6]}"
    StoreBlock(root=(folder / "named").as_uri()).save(block)
    deployed_run(Running(), parameters={"store": block})
    deployed_run(Completed(), parameters={"store": (folder / "addressed").as_uri()})
    deployed_run(Running(), parameters={"store": "default"})
    elsewhere = Elsewhere()
    elsewhere.look()
    assert {"there", "ended"} <= shown(elsewhere).keys()
    assert not {"here", "unknown"} & shown(elsewhere).keys()

    default = OverviewReader(FileStore(folder / "default")).read()
    page = overview_page(overview_of_all([default, *elsewhere.overviews]))
    for job, address in {"here": "", "there": "named", "ended": "addressed"}.items():
        row = next(line for line in page.splitlines() if f"**{job}**" in line and line.startswith("|"))
        assert ((folder / address).as_uri() in row.replace("<br>", "")) == bool(address)


def test_what_has_ended_is_read_once_more_and_then_again_only_if_something_runs(folder: Path) -> None:
    past = job_in(folder / "elsewhere", "a")
    where = {"store": (folder / "elsewhere").as_uri()}
    run = deployed_run(Running(), parameters=where)
    world = World()
    elsewhere = Elsewhere(world.clock)

    def look() -> dict[str, JobState | None]:
        world.sleep(LEAST_SECONDS)
        elsewhere.look()
        return shown(elsewhere)

    assert look()["a"] is JobState.RUNNING
    past.status(JobState.COMPLETED)
    set_state(run, Completed())
    assert look()["a"] is JobState.COMPLETED
    job_in(folder / "elsewhere", "b")
    assert "b" not in look(), "a store that nothing runs in costs nothing"
    deployed_run(Running(), parameters=where)
    assert look()["b"] is JobState.RUNNING


def test_a_store_that_cannot_be_read_hides_no_other_one_and_is_tried_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = FileStore(folder / "away")
    job_in(folder / "there", "readable")
    job_in(away.root, "returned")
    for store in ("there", "away"):
        deployed_run(Completed(), parameters={"store": (folder / store).as_uri()})
    world = World()
    elsewhere = Elsewhere(world.clock)
    list_keys = FileStore.list

    def fails_where_it_is_away(self: FileStore, prefix: str = "") -> list[ObjectInfo]:
        if self.uri == away.uri:
            raise StoreUnavailable("nobody answers")
        return list_keys(self, prefix)

    with monkeypatch.context() as patches:
        patches.setattr(FileStore, "list", fails_where_it_is_away)
        elsewhere.look()
    assert shown(elsewhere)["readable"] is JobState.RUNNING
    assert "returned" not in shown(elsewhere)
    assert f"{away.uri}: nobody answers" in overview_page(overview_of_all(elsewhere.overviews))
    world.sleep(LEAST_SECONDS)
    elsewhere.look()
    assert {"readable", "returned"} <= shown(elsewhere).keys()
    assert "nobody answers" not in overview_page(overview_of_all(elsewhere.overviews))
