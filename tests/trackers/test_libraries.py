"""The trackers' own libraries, given a job of five attempts by the process that flows start."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from crucible.jobs.job import Job
from crucible.store import FileStore
from crucible.trackers.config import TrackerConfig, TrackerKind
from crucible.trackers.process import finish_trackers, start_trackers
from crucible.trackers.records import TrackerRecord, read_record
from tests.conftest import unused_port
from tests.trackers.five_attempts import STEPS, five_attempts
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CARD = "# shakespeare\n\nA model card.\n"


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


def tracked(store: FileStore, folder: Path, config: TrackerConfig) -> tuple[Job, TrackerRecord]:
    """The job, while the tracker's process follows it. Between two attempts its supervisor is killed and comes back."""
    lines: list[str] = []
    moves = five_attempts(store, folder, now=datetime.now(UTC))
    job = next(moves).job

    def reached(step: int) -> None:
        until(lambda: (record := read_record(job, config.name)) and record.step >= step)

    processes = start_trackers({"root": store.uri}, [config], {"job": job.job_id}, lines.append)
    reached(190)
    next(moves)
    reached(400)
    finish_trackers(processes, 0.0)
    for _ in range(3):
        next(moves)
    processes = start_trackers({"root": store.uri}, [config], {"job": job.job_id}, lines.append)
    reached(700)
    list(moves)
    job.store.write("models/step-00001000/README.md", CARD.encode())
    job.store.write("models/step-00001000/model.safetensors", bytes(100))
    job.store.write_json("evaluation.json", {"step": 1000})
    assert finish_trackers(processes, 120) == [], lines
    record = read_record(job, config.name)
    assert record is not None
    assert (record.step, record.finished) == (1000, True), lines
    return job, record


def test_tensorboard_reads_the_event_files(store: FileStore, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    job, _ = tracked(store, tmp_path, TrackerConfig(name="tensorboard", kind=TrackerKind.TENSORBOARD))

    events = accumulator.EventAccumulator(str(store.root / "jobs" / job.job_id / "tensorboard"))
    events.Reload()

    losses = events.Scalars("train_loss")
    assert [event.step for event in losses] == STEPS
    assert all(before.wall_time < after.wall_time for before, after in pairwise(losses))


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("mlflow")
    port = unused_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    address = f"http://127.0.0.1:{port}"
    with (tmp_path / "mlflow.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            until(lambda: server.poll() is not None or _healthy(address), 300)
            yield address
        finally:
            server.terminate()


def _healthy(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", trust_env=False).is_success
    except httpx.HTTPError:
        return False


def test_mlflow_has_one_run_and_the_model_with_its_card(store: FileStore, tmp_path: Path, mlflow_server: str) -> None:
    from mlflow import MlflowClient

    config = TrackerConfig(name="team", kind=TrackerKind.MLFLOW, url=mlflow_server, project="nanogpt")
    job, record = tracked(store, tmp_path, config)

    client = MlflowClient(mlflow_server, mlflow_server)
    experiment = client.get_experiment_by_name("nanogpt")
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (record.run_id, job.job_id, "FINISHED")
    assert run.data.params["n_layer"] == str(job.read_spec().config.n_layer)  # type: ignore[union-attr]
    for metric in ("train_loss", "attempt"):
        assert [point.step for point in client.get_metric_history(run.info.run_id, metric)] == STEPS
    [version] = client.search_model_versions(f"name='{job.job_id}'")
    assert (version.description, version.run_id) == (CARD, run.info.run_id)
    assert "model/model.safetensors" in {file.path for file in client.list_artifacts(run.info.run_id, "model")}
    assert record.url == f"{mlflow_server}/#/experiments/{experiment.experiment_id}/runs/{run.info.run_id}"


def test_an_mlflow_server_that_hangs_stops_nothing(store: FileStore, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    past = [*five_attempts(store, tmp_path)][-1]
    lines: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        config = TrackerConfig(name="mlflow", kind=TrackerKind.MLFLOW, url=address)
        processes = start_trackers({"root": store.uri}, [config], {"job": past.job_id}, lines.append)
        deaf.accept()  # it has been asked, and will not answer

        assert finish_trackers(processes, 1.0) == ["mlflow"]

    assert read_record(past.job, "mlflow") is None


def test_trackio_has_one_run(store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    storage = pytest.importorskip("trackio.sqlite_storage")
    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "trackio")
    job, record = tracked(store, tmp_path, TrackerConfig(name="trackio", kind=TrackerKind.TRACKIO))

    assert storage.SQLiteStorage.get_runs("crucible") == [job.job_id]
    logged = storage.SQLiteStorage.get_logs("crucible", job.job_id)
    assert [entry["step"] for entry in logged if "train_loss" in entry] == STEPS
    assert record.url == "trackio show --project crucible"


def test_weights_and_biases_has_one_run(store: FileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from crucible.trackers.backends.wandb import kept_rows

    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    job, record = tracked(store, tmp_path, TrackerConfig(name="wandb", kind=TrackerKind.WANDB, project="nanogpt"))

    paths = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime)
    assert {path.name for path in paths} == {f"run-{job.job_id}.wandb"}
    rows = [row for path in paths for row in kept_rows(path)]
    assert [step for step, values in rows if "train_loss" in values] == STEPS
    assert record.url.startswith("offline: wandb sync ")
