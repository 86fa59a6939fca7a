"""What the `docker-gpu` worker asks of the engine, without one: `test_on_engine.py` has the real thing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import docker.errors
import pytest
from prefect.client.schemas.objects import FlowRun

from crucible.pools.docker.configuration import DockerGpuJobConfiguration
from crucible.pools.docker.pool import PoolOptions, pool_template
from crucible.pools.docker.worker import DockerGpuWorker


class FakeContainer:
    """A running container."""

    def __init__(self, name: str, labels: dict[str, str]) -> None:
        self.name, self.labels, self.status = name, labels, "running"
        self.stopped_after: int | None = None

    def stop(self, timeout: int) -> None:
        self.stopped_after = timeout


class FakeEngine:
    """The part of docker-py's client that finds and creates containers."""

    def __init__(self) -> None:
        self.running: list[FakeContainer] = []
        self.created: list[dict[str, Any]] = []
        self.removes_meanwhile = False
        self.containers = SimpleNamespace(list=self._list, create=self._create)
        self.api = SimpleNamespace(create_container=self._record)

    def _list(self, filters: dict[str, Any], ignore_removed: bool = False) -> list[FakeContainer]:
        if self.removes_meanwhile and not ignore_removed:  # docker-py looks at each container that the engine lists
            raise docker.errors.NotFound("no such container")
        wanted = filters["label"] if isinstance(filters["label"], list) else [filters["label"]]
        return [one for one in self.running if {f"{k}={v}" for k, v in one.labels.items()} >= set(wanted)]

    def _create(self, **settings: Any) -> FakeContainer:
        self.api.create_container(**settings)
        return FakeContainer(str(settings["name"]), {})

    def _record(self, **settings: Any) -> None:
        self.created.append(settings)

    def version(self) -> dict[str, str]:
        return {"Version": "27.0.0"}

    def close(self) -> None:
        """Nothing to close."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeEngine:
    made = FakeEngine()
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(DockerGpuWorker, "_get_client", lambda self: made)
    monkeypatch.setattr(DockerGpuWorker, "_wait_for_engine", lambda self: None)
    return made


def configured(job: str, **variables: Any) -> DockerGpuJobConfiguration:
    template = pool_template(PoolOptions(image="crucible:cpu", gpus="0", settings={"user": "0:0"}))
    made = asyncio.run(DockerGpuJobConfiguration.from_template_and_values(template, variables, client=object()))
    made.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="run", tags=[f"job:{job}"]))
    return made


def test_an_attempt_ends_the_one_before_it_and_no_job_of_the_same_name_in_another_store(
    engine: FakeEngine, tmp_path: Path
) -> None:
    worker = DockerGpuWorker(work_pool_name="docker-gpu")
    for store in ("mine", "theirs"):
        one = configured("baseline")
        worker._make_room(one, f"file://{tmp_path}/{store}")
        engine.running.append(FakeContainer(store, dict(one.labels)))
    assert [one.stopped_after for one in engine.running] == [None, None]

    worker._make_room(configured("baseline", stop_timeout_seconds=30), str(tmp_path / "mine"))
    assert [one.stopped_after for one in engine.running] == [30, None]


def test_a_container_that_is_removed_in_the_same_moment_keeps_no_attempt_from_its_start(
    engine: FakeEngine, tmp_path: Path
) -> None:
    engine.removes_meanwhile = True
    DockerGpuWorker(work_pool_name="docker-gpu")._make_room(configured("baseline"), str(tmp_path / "mine"))


def test_runs_that_start_at_once_each_keep_their_own_time_to_save(engine: FakeEngine) -> None:
    worker = DockerGpuWorker(work_pool_name="docker-gpu")
    wanted = [configured(job, stop_timeout_seconds=seconds) for job, seconds in (("long", 600), ("short", 10))]
    for one in wanted:
        one.mount({})
    settings = [worker._build_container_settings(engine, one) for one in wanted]  # both, before either is created
    for each in settings:
        worker._create_container(engine, **each)
    assert [made["stop_timeout"] for made in engine.created] == [600, 10]
