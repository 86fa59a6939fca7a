"""Evaluation as tasks: fetch the checkpoints, measure and export in a process of their own, publish.

This process never imports torch. Only the network is retried.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task

from crucible.agent.workload import Workload
from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import MODELS, Checkpoint, best_checkpoint
from crucible.checkpoints.restore import choose_checkpoint, fetch, fetch_chosen
from crucible.contract import step_name
from crucible.datasets.disk import work_folder
from crucible.datasets.fetch import fetch_dataset
from crucible.errors import CheckpointError, ConfigError, CrucibleError
from crucible.home import crucible_home
from crucible.jobs.job import Job
from crucible.prefect_compat.live_artifacts import LiveArtifact
from crucible.reports import Metrics, loss_curve, summarise
from crucible.reports.evaluation import EVALUATION, evaluation_page
from crucible.reports.picture import data_uri
from crucible.store import store_option
from tasks.reporting import JobReport, artifact_key
from tasks.retries import NETWORK_RETRIES, quoted

PARALLEL_UPLOADS = 4
METRICS = "metrics.json"


@dataclass(frozen=True)
class Wanted:
    """What to evaluate and what to make of it."""

    step: int | None
    """None: the newest checkpoint, or the one that looked best in training if it is the better one when measured."""
    formats: Sequence[str]
    samples: int
    prompt: str


def evaluate_job(job: Job, wanted: Wanted) -> dict[str, Any]:
    """Evaluate a job's model, keep everything under `jobs/<job>/models/step-…/` and return `evaluation.json`.

    Raises `ConfigError` when the job has no such checkpoint or trained something else than our own model,
    `CheckpointError` when nothing whole is saved, `CrucibleError` with the evaluation's own message when it fails.
    """
    if script := job.read_spec().script:
        raise ConfigError(
            f"job: {job.job_id} runs a script of its own ({' '.join(script.command)[:80]}); its checkpoints are not "
            f"of a model that can be evaluated here; `crucible checkpoints get {job.job_id} DIR` fetches them"
        )
    with work_folder() as work:
        folders = fetch_checkpoints(quoted(job), wanted.step, work)
        data = fetch_data(quoted(job))
        out = measure(quoted(job), folders, data, work, wanted)
        evaluation = publish_model(quoted(job), out)
    page = LiveArtifact(artifact_key("evaluation", job.job_id), "markdown")
    page.publish(evaluation_page(evaluation, data_uri(_curve(job))), f"Evaluation of job {job.job_id}")
    JobReport(job, moves=False).publish()
    return evaluation


@task(name="fetch checkpoints", persist_result=False, **NETWORK_RETRIES)
def fetch_checkpoints(job: Job, step: int | None, work: Path) -> list[Path]:
    """Local folders of the checkpoints to evaluate, verified."""
    checkpoints = Checkpoints(job)
    if step is not None:
        chosen = choose_checkpoint(checkpoints, str(step), f"step = {step}")
        folder = work / step_name(step)
        fetch_chosen(checkpoints, chosen, folder)
        return [folder]
    there = checkpoints.list()
    newest = _newest_whole(checkpoints, there, work)
    if newest is None:
        raise CheckpointError(f"job {job.job_id} has no whole checkpoint to evaluate; train it first")
    best = best_checkpoint(there)
    if best is None or best.step == newest[0].step:
        return [newest[1]]
    folder = work / step_name(best.step)
    return [newest[1]] if fetch(checkpoints, best, folder) else [newest[1], folder]


@task(name="fetch dataset", persist_result=False, **NETWORK_RETRIES)
def fetch_data(job: Job) -> Path:
    """The job's dataset on this machine."""
    return fetch_dataset(job.root, job.read_spec().dataset, crucible_home() / "cache" / "datasets")


@task(name="measure and export", persist_result=False)
def measure(job: Job, folders: Sequence[Path], data: Path, work: Path, wanted: Wanted) -> Path:
    """Run `python -m crucible.evaluation` and return the folder it filled."""
    logger = get_run_logger()
    out, about = work / "model", work / "job.json"
    summary = summarise(job)
    elsewhere = {"store": job.root.uri} if store_option(job.root) else {}  # where the card's commands find the data
    about.write_text(json.dumps({**summary.as_json(), "job": job.job_id, **elsewhere}))
    command = [
        *(sys.executable, "-m", "crucible.evaluation", "--checkpoint", *map(str, folders)),
        *("--data", str(data), "--out", str(out), "--job", str(about)),
        *("--formats", ",".join(wanted.formats), "--samples", str(wanted.samples), "--prompt", wanted.prompt),
    ]
    lines: list[str] = []

    def on_line(line: str) -> None:
        lines.append(line)
        logger.info(line)

    process = Workload(command, os.environ, Path.cwd(), on_line)
    try:
        end = process.end()
    except BaseException:
        process.kill()
        raise
    if end.exit_code != 0:
        last = lines[-1] if lines else ""
        raise CrucibleError(last.removeprefix("error: ") if last.startswith("error: ") else end.message)
    return out


@task(name="publish model", persist_result=False, **NETWORK_RETRIES)
def publish_model(job: Job, out: Path) -> dict[str, Any]:
    """Put the folder into the store and record the evaluation in the job."""
    evaluation = upload_model(job, out)
    job.store.write_json(EVALUATION, evaluation)
    get_run_logger().info("the model of step %d is in %s", evaluation["step"], evaluation["uri"])
    return evaluation


def upload_model(job: Job, out: Path) -> dict[str, Any]:
    """Upload a model's folder, `metrics.json` last, and return the metrics with where everything is.

    While an earlier evaluation of the same step is replaced, there is no `metrics.json`: the model is not whole.
    """
    metrics = json.loads((out / METRICS).read_text(encoding="utf-8"))
    prefix = f"{MODELS}/{step_name(metrics['step'])}"
    files = sorted(path for path in out.rglob("*") if path.is_file() and path != out / METRICS)
    job.store.delete(f"{prefix}/{METRICS}")

    def upload(path: Path) -> None:
        job.store.upload(path, f"{prefix}/{path.relative_to(out).as_posix()}")

    with ThreadPoolExecutor(PARALLEL_UPLOADS, thread_name_prefix="upload") as pool:
        list(pool.map(upload, files))
    upload(out / METRICS)
    return {
        **metrics,
        "job": job.job_id,
        "model": f"jobs/{job.job_id}/{prefix}",
        "uri": f"{job.store.uri}/{prefix}",
        "files": {path.relative_to(out).as_posix(): path.stat().st_size for path in [*files, out / METRICS]},
    }


def _newest_whole(checkpoints: Checkpoints, there: Sequence[Checkpoint], work: Path) -> tuple[Checkpoint, Path] | None:
    for checkpoint in there:
        folder = work / step_name(checkpoint.step)
        problem = fetch(checkpoints, checkpoint, folder)
        if problem is None:
            return checkpoint, folder
        get_run_logger().warning("checkpoint %s is damaged and passed over: %s", checkpoint.name, problem)
    return None


def _curve(job: Job) -> bytes:
    starts = {attempt.number: start.step for attempt in job.attempts() if (start := attempt.read_start())}
    return loss_curve(Metrics(job).rows(), starts)
