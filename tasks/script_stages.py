"""What runs before and after the training of a script: jobs of their own, in the same flow run."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from prefect.exceptions import TerminationSignal

from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.metrics import Metrics
from crucible.jobs.records import Limits, now
from crucible.jobs.stage_records import StageRun, stage_name
from crucible.jobs.status import JobState, JobStatus, status_of
from crucible.placement.choice import Choice
from crucible.placement.overflow import OverflowPolicy
from crucible.placement.script import place_script
from crucible.prefect_compat.live_artifacts import LiveArtifact
from crucible.resources import Resources
from crucible.script_config import EvaluateStage, Stage
from crucible.supervision.supervisor import Supervision
from tasks.job_variables import remember_variables
from tasks.observing import UNAVAILABLE
from tasks.placing import pools_now
from tasks.reporting import artifact_key
from tasks.supervising import SupervisedJob

LOOK_SECONDS = 1.0


def preprocess(run: SupervisedJob, trained_on: str) -> JobStatus | None:
    """Run the stage before the training, unless it has been completed already; None where there is none."""
    spec = run.job.read_spec()
    if spec.preprocess is None:
        return None
    pool = spec.preprocess.pool or trained_on
    relation = {"prepared_by": "", "prepares": spec.job_id}
    left = _left_usd(run)
    if not _completed(run, spec.prepared_by) and left is not None and left <= 0:
        return _over_budget("preprocess", pool)
    place = _Place(pool, trained_on, left)
    stage, choice = _stage(run, spec.preprocess, place, spec.prepared_by, relation)
    return run_stage_job(stage, choice)


def run_stage_job(stage: SupervisedJob, choice: Choice) -> JobStatus:
    """Run a stage that is on record, to its end; the reason names its job."""
    return _named(stage, stage.run_attempts(choice, OverflowPolicy(choice.placements, pools_now)))


def evaluate(run: SupervisedJob, trained: JobStatus, trained_on: str, stage: EvaluateStage) -> JobStatus:
    """Run the stage after the training, on all of its pools side by side; a failure is the end of both."""
    names = {pool: stage_name(run.job.job_id, f"evaluate-{pool}") for pool in stage.pools or [trained_on]}
    due, left = [pool for pool, name in names.items() if not _completed(run, name)], _left_usd(run)
    if due and left is not None and left <= 0:
        return _over_budget("evaluate", ", ".join(due))
    share = None if left is None else left / max(1, len(due))  # they run side by side
    stages = [
        _stage(run, stage, _Place(pool, trained_on, share), name, {"evaluates": run.job.job_id})
        for pool, name in names.items()
    ]
    if len(stages) == 1:
        [(only, choice)] = stages
        statuses = [only.run_attempts(choice, OverflowPolicy(choice.placements, pools_now))]
    else:
        statuses = _side_by_side(run, stages)
        _publish_comparison(run.job, [evaluation.job for evaluation, _ in stages])
    for (evaluation, _), status in zip(stages, statuses, strict=True):
        if status.state is not JobState.COMPLETED:
            return _named(evaluation, status)
    return trained


@dataclass(frozen=True)
class _Place:
    """Where a stage runs, and what it may cost."""

    pool: str
    trained_on: str
    max_cost_usd: float | None


def _left_usd(run: SupervisedJob) -> float | None:
    """What the job's cap leaves for a stage; None: there is no cap."""
    cap = run.job.read_limits().max_cost_usd
    return None if cap is None else cap - run.job.cost_usd()


def _completed(run: SupervisedJob, name: str) -> bool:
    status = status_of(Job(run.job.root, name))
    return status is not None and status.state is JobState.COMPLETED


def _over_budget(stage: str, where: str) -> JobStatus:
    reason = f"{stage} on {where} was not started: the job's max_cost_usd is used up; raise it and continue the job"
    return JobStatus(state=JobState.BUDGET_STOP, reason=reason, supervisor=0)


def _stage(
    run: SupervisedJob, stage: Stage, place: _Place, name: str, relation: dict[str, str]
) -> tuple[SupervisedJob, Choice]:
    """The stage's job, on record, and where it goes; `relation`: what it has to do with the training's."""
    spec = run.job.read_spec()
    if spec.script is None:
        raise ConfigError(f"job: {run.job.job_id} has a stage and no script; start a new job")
    made = {
        "job_id": name,
        "script": stage.script(spec.script),
        "resources": spec.resources.on_one_node() if place.pool == place.trained_on else Resources(),
        "preprocess": None,
        "evaluate": None,
        "forked_from": None,
        "created_at": now(),
        **relation,
    }
    own = replace(run, job=Job(run.job.root, name), spec=spec.model_copy(update=made))
    if own.job.store.exists("job.json"):
        own = replace(own, spec=own.job.read_spec())
    choice = place_script(place.pool, own.spec.resources)
    more = place.max_cost_usd
    own.put_on_record(own.spec, Limits(max_cost_usd=None if more is None else own.job.cost_usd() + more), choice)
    if place.pool == place.trained_on:
        remember_variables(own.job)
    run.job.write_stage(StageRun(name=name, stage=own.spec.stage, pool=place.pool, job=name))
    return own, choice


def _named(stage: SupervisedJob, status: JobStatus) -> JobStatus:
    return status.model_copy(update={"reason": f"{stage.job.job_id}: {status.reason}"})


def _side_by_side(run: SupervisedJob, stages: Sequence[tuple[SupervisedJob, Choice]]) -> list[JobStatus]:
    """Supervise all of them at once, each in a thread: the end of this process must not wait for them.

    What one of them raises is raised once all have ended: the others' machines are not left alone.
    """
    ended: queue.SimpleQueue[tuple[int, JobStatus | BaseException]] = queue.SimpleQueue()

    def supervise(number: int, supervision: Supervision) -> None:
        try:
            ended.put((number, supervision.run()))
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            ended.put((number, error))

    for number, (stage, choice) in enumerate(stages):
        supervision = stage.supervision(choice, OverflowPolicy(choice.placements, pools_now))
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(supervise, number, supervision), daemon=True).start()
    found: dict[int, JobStatus | BaseException] = {}
    with run.watch.polled():
        while len(found) < len(stages):
            try:
                number, end = ended.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            except TerminationSignal:
                if run.watch.requested() is None:
                    raise
                continue  # each supervision sees the request at its next look, saves and stops
            found[number] = end
    statuses = []
    for _, end in sorted(found.items()):
        if isinstance(end, BaseException):
            raise end
        statuses.append(end)
    return statuses


def _publish_comparison(trained: Job, evaluations: Sequence[Job]) -> None:
    """What each evaluation reported last, and what it took, as one table in the Prefect UI."""
    rows: list[dict[str, Any]] = []
    for job in evaluations:
        outcomes = [outcome for attempt in job.attempts() if (outcome := attempt.read_outcome())]
        launch = job.attempts()[-1].read_launch() if outcomes else None
        reported = {name: value for row in Metrics(job).rows() for name, value in row.items()}
        rows.append(
            {
                "pool": launch.pool if launch else "",
                "instance": launch.instance if launch else "",
                "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
                "cost_usd": round(job.cost_usd(), 4),
                **{name: value for name, value in reported.items() if name not in ("step", "attempt", "time")},
                "job": job.job_id,
            }
        )
    with suppress(*UNAVAILABLE):
        table = LiveArtifact(artifact_key("evaluations", trained.job_id), "table")
        table.publish(rows, f"Evaluations of {trained.job_id}, side by side")
