"""The preprocess flow on a real Prefect server."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State

from crucible.datasets import build
from crucible.datasets.config import DatasetConfig
from crucible.datasets.fetch import fetch_dataset
from crucible.errors import StoreUnavailable
from crucible.store import Store
from flows.preprocess import preprocess
from tasks import datasets as dataset_tasks
from tests.datasets.texts import make_text


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(make_text(20_000), encoding="utf-8")
    return path


def task_names(state: State, expected: set[str]) -> list[str]:
    """The names of the run's task runs, once the expected ones are there: they reach the server as events."""
    run_id = state.state_details.flow_run_id
    assert run_id is not None
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while True:
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run_id])))
            names = sorted(run.name for run in runs)
            if expected <= set(names) or time.monotonic() > deadline:
                return names
            time.sleep(0.2)


def latest_artifact(digest: str) -> Any:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts()
    return next(artifact for artifact in found if artifact.key == f"dataset-{digest[:12]}")


def test_shards_are_mapped_tasks_and_a_second_run_is_cached(
    prefect_api: str, text_file: Path, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = DatasetConfig(source=str(text_file), shard_bytes=8000)
    with caplog.at_level(logging.INFO):
        first = preprocess(config, store.uri, return_state=True)
    digest = first.result()
    folder = fetch_dataset(store, digest, tmp_path / "cache")
    shards = [path.stem.rsplit("-", 1)[0] for path in folder.glob("*.bin")]
    assert len(shards) >= 4
    everything = {"plan", "finish", *shards}
    assert set(task_names(first, everything)) >= everything
    artifact = latest_artifact(digest)
    assert digest in artifact.data
    assert str(text_file) in artifact.data

    with caplog.at_level(logging.INFO):
        second = preprocess(config, store.uri, return_state=True)
    assert second.result() == digest
    assert task_names(second, {"plan"}) == ["plan"]
    assert f"cached: dataset {digest}" in caplog.text


def test_bad_text_fails_the_run_with_the_message_and_without_retries(
    prefect_api: str, store: Store, tmp_path: Path
) -> None:
    state = preprocess(DatasetConfig(source=str(tmp_path / "missing")), store.uri, return_state=True)
    assert state.is_failed()
    assert state.message is not None
    assert "does not exist on this machine; give the path of a file or folder" in state.message
    assert store.list() == []


def test_a_store_that_fails_once_is_tried_again(
    prefect_api: str, text_file: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, failures = build.build_shard, iter([StoreUnavailable("the network blinked")])

    def fails_once(*arguments: Any, **options: Any) -> Any:
        for error in failures:
            raise error
        return whole(*arguments, **options)

    monkeypatch.setattr(build, "build_shard", fails_once)
    monkeypatch.setattr(dataset_tasks.build_shard, "retry_delay_seconds", 0)
    digest = preprocess(DatasetConfig(source=str(text_file)), store.uri)
    assert fetch_dataset(store, digest, tmp_path / "cache").is_dir()


def test_the_form_knows_every_field(prefect_api: str) -> None:
    properties = preprocess.parameters.properties
    assert set(properties) == {"dataset", "store"}
    assert properties["store"]["description"]
    assert preprocess.parameters.definitions["DatasetConfig"]["properties"]["tokenizer"]["enum"]
