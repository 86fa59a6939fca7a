"""What runs before and after the training of a script: jobs of their own, in the same flow run."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from prefect.exceptions import TerminationSignal

from crucible.jobs.job import Job
from crucible.jobs.metrics import Metrics
from crucible.jobs.records import JobSpec, Limits, now
from crucible.jobs.status import JobState, JobStatus
from crucible.placement.choice import Choice
from crucible.placement.overflow import OverflowPolicy
from crucible.placement.script import place_script
from crucible.prefect_compat.live_artifacts import LiveArtifact
from crucible.resources import Resources
from crucible.script_config import Stage
from crucible.supervision.supervisor import Supervision
from tasks.observing import UNAVAILABLE
from tasks.placing import pools_now
from tasks.reporting import artifact_key
from tasks.supervising import SupervisedJob

LOOK_SECONDS = 1.0


def stage_name(spec: JobSpec, stage: str) -> str:
    """The name of a stage's job."""
    return f"{spec.job_id[:40]}-{stage}"


def preprocess(run: SupervisedJob, trained_on: str) -> JobStatus | None:
    """Run the stage before the training, unless it has been completed already; None where there is none."""
    spec = run.job.read_spec()
    if spec.preprocess is None:
        return None
    pool = spec.preprocess.pool or trained_on
    stage, choice = _stage(run, spec.preprocess, pool, trained_on, spec.prepared_by, {"prepared_by": ""})
    return _named(stage, stage.run_attempts(choice, OverflowPolicy(choice.placements, pools_now)))


def evaluate(run: SupervisedJob, trained: JobStatus, trained_on: str) -> JobStatus:
    """Run the stage after the training, on all of its pools side by side; a failure is the end of both."""
    spec = run.job.read_spec()
    if spec.evaluate is None:
        return trained
    stages = [
        _stage(
            run,
            spec.evaluate,
            pool,
            trained_on,
            stage_name(spec, f"evaluate-{pool}"),
            {"evaluates": spec.job_id},
        )
        for pool in spec.evaluate.pools or [trained_on]
    ]
    if len(stages) == 1:
        [(stage, choice)] = stages
        statuses = [stage.run_attempts(choice, OverflowPolicy(choice.placements, pools_now))]
    else:
        statuses = _side_by_side(run, stages)
        _publish_comparison(run.job, [stage.job for stage, _ in stages])
    for (stage, _), status in zip(stages, statuses, strict=True):
        if status.state is not JobState.COMPLETED:
            return _named(stage, status)
    return trained


def _stage(
    run: SupervisedJob, stage: Stage, pool: str, trained_on: str, name: str, relation: dict[str, str]
) -> tuple[SupervisedJob, Choice]:
    """The stage's job, on record, and where it goes; `relation`: what it has to do with the training's."""
    spec = run.job.read_spec()
    assert spec.script is not None
    made = {
        "job_id": name,
        "script": stage.script(spec.script),
        "resources": spec.resources.on_one_node() if pool == trained_on else Resources(),
        "preprocess": None,
        "evaluate": None,
        "forked_from": None,
        "created_at": now(),
        **relation,
    }
    own = replace(run, job=Job(run.job.root, name), spec=spec.model_copy(update=made))
    choice = place_script(pool, own.spec.resources)
    own.put_on_record(own.spec, Limits(max_cost_usd=run.job.read_limits().max_cost_usd), choice)
    return own, choice


def _named(stage: SupervisedJob, status: JobStatus) -> JobStatus:
    return status.model_copy(update={"reason": f"{stage.job.job_id}: {status.reason}"})


def _side_by_side(run: SupervisedJob, stages: Sequence[tuple[SupervisedJob, Choice]]) -> list[JobStatus]:
    """Supervise all of them at once, each in a thread: the end of this process must not wait for them."""
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
    found: dict[int, JobStatus] = {}
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
            if isinstance(end, BaseException):
                raise end
            found[number] = end
    return [found[number] for number in range(len(stages))]


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
