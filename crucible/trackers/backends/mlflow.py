"""MLflow: a server's, or a database on this machine. The evaluated model is registered with its card."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crucible.formatting import url_label
from crucible.home import crucible_home
from crucible.jobs.job import Job
from crucible.jobs.metrics import Row
from crucible.jobs.status import JobState
from crucible.trackers.backends.base import RunEnd, RunRequest
from crucible.trackers.points import shown_metrics

JOB_TAG, STEP_TAG, MODEL_TAG = "crucible.job", "crucible.step", "crucible.model"
CARD = "README.md"
LONGEST_VALUE = 500
"""Characters of a parameter that every MLflow takes."""
LONGEST_CARD = 100_000
_BATCH = 1000
_STATES = {JobState.COMPLETED: "FINISHED", JobState.FAILED: "FAILED", JobState.STOPPED: "FAILED"}
"""Of MLflow's run; any other end is `KILLED`."""


class MlflowRun:
    """A job's run in an MLflow experiment, found again by the tag with the job's id."""

    def __init__(self, request: RunRequest) -> None:
        config = request.config
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        if token := config.api_key.get_secret_value():
            os.environ["MLFLOW_TRACKING_TOKEN"] = token
        import mlflow
        from mlflow.entities import Metric, Param, RunTag

        self._metric, self._param, self._tag = Metric, Param, RunTag
        self._job, self._spec = request.job, request.spec
        address = config.url or os.environ.get("MLFLOW_TRACKING_URI") or _local_database()
        self._client: Any = mlflow.MlflowClient(tracking_uri=address, registry_uri=address)
        experiment = self._experiment(request.project)
        run = self._find(experiment) or self._create(request, experiment)
        self.run_id = run.info.run_id
        self.newest_step: int | None = int(run.data.tags.get(STEP_TAG, -1))
        self.url = where_shown(address, experiment, self.run_id)

    def send(self, rows: Sequence[Row]) -> None:
        """One row is never split: the tag with the newest step goes in the same request as its metrics."""
        batch: list[Any] = []
        for row in rows:
            at = int(1000 * row.get("time", time.time()))
            metrics = [
                self._metric(_name(name), value, at, int(row["step"])) for name, value in shown_metrics(row).items()
            ]
            if len(batch) + len(metrics) > _BATCH:
                self._log(batch)
                batch = []
            batch += metrics
        self._log(batch)

    def finish(self, end: RunEnd) -> None:
        self._client.log_batch(
            self.run_id,
            tags=[self._tag("crucible.reason", end.reason[:5000] or str(end.state))],
            metrics=[self._metric(name, value, int(time.time() * 1000), 0) for name, value in end.figures.items()],
        )
        if end.model:
            self._register(self._job, end.model)
        self._client.set_terminated(self.run_id, _STATES.get(end.state, "KILLED"))

    def close(self) -> None:
        """The run stays as it is: MLflow holds nothing open."""

    def _log(self, metrics: list[Any]) -> None:
        if metrics:
            newest = str(metrics[-1].step)
            self._client.log_batch(self.run_id, metrics=metrics, tags=[self._tag(STEP_TAG, newest)])

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def _find(self, experiment: str) -> Any:
        wanted = f"tags.`{JOB_TAG}` = '{self._spec.job_id}'"
        found = self._client.search_runs([experiment], filter_string=wanted, max_results=1)
        if found and found[0].info.status != "RUNNING":
            self._client.update_run(found[0].info.run_id, status="RUNNING")
        return found[0] if found else None

    def _create(self, request: RunRequest, experiment: str) -> Any:
        tags = {JOB_TAG: request.spec.job_id, **{f"crucible.{name}": text for name, text in request.labels.items()}}
        run = self._client.create_run(experiment, tags=tags, run_name=request.spec.job_id)
        parameters = [self._param(_name(key), str(value)[:LONGEST_VALUE]) for key, value in request.parameters.items()]
        for first in range(0, len(parameters), 100):
            self._client.log_batch(run.info.run_id, params=parameters[first : first + 100])
        return run

    def _register(self, job: Job, folder: str) -> None:
        """Make the model a version of the registered model that is named after the job, its card the description.

        A model on S3 is named where it is; one in a folder of this machine is uploaded.
        """
        run = self._client.get_run(self.run_id)
        if run.data.tags.get(MODEL_TAG) == folder:
            return
        card = job.store.read(f"{folder}/{CARD}").decode(errors="replace")[:LONGEST_CARD]
        source = f"{job.store.uri}/{folder}"
        if source.startswith("file:"):
            with tempfile.TemporaryDirectory(prefix="crucible-model-") as scratch:
                for info in job.store.list(folder):
                    job.store.download(info.key, Path(scratch, info.key.removeprefix(f"{folder}/")))
                self._client.log_artifacts(self.run_id, scratch, "model")
            source = f"{run.info.artifact_uri}/model"
        name = self._spec.job_id
        if not self._client.search_registered_models(filter_string=f"name = '{name}'"):
            self._client.create_registered_model(name, description=f"Trained by Crucible as job {name}.")
        self._client.create_model_version(name, source, self.run_id, description=card)
        self._client.set_tag(self.run_id, MODEL_TAG, folder)


def where_shown(address: str, experiment: str, run_id: str) -> str:
    """The run's page at a server, or the command that shows a database; neither holds a password."""
    label = url_label(address)
    if address.startswith("http"):
        return f"{label}/#/experiments/{experiment}/runs/{run_id}"
    return f"mlflow ui --backend-store-uri {label}"


def _local_database() -> str:
    folder = crucible_home() / "mlflow"
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def _name(name: str) -> str:
    """A name that MLflow takes."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)[:250]
