"""What runs before the trials of a script's sweep, and after them with the best one."""

from __future__ import annotations

from crucible.jobs.records import JobSpec, Limits
from crucible.jobs.status import JobState, JobStatus
from crucible.placement.script import place_script
from crucible.resources import Resources
from tasks.job_variables import remember_variables
from tasks.script_stages import evaluate, run_stage_job
from tasks.sweep_supervising import SupervisedSweep


def preprocess_once(run: SupervisedSweep) -> JobStatus | None:
    """Run the stage before the trials, unless it has been completed already; None where there is none.

    Every trial finds its outputs in place (`JobSpec.prepared_by`).
    """
    spec = run.sweep.read_spec()
    if spec.preprocess is None or spec.script is None:
        return None
    pool = spec.preprocess.pool or spec.pool
    stage = JobSpec(
        job_id=spec.prepared_by,
        script=spec.preprocess.script(spec.script),
        code=spec.code,
        resources=spec.resources if pool == spec.pool else Resources(),
        prepares=spec.sweep_id,
        sweep=spec.sweep_id,
        project=spec.project,
        owner=spec.owner,
    )
    job = run.supervised_job(stage.job_id, stage)
    choice = place_script(pool, stage.resources)
    job.put_on_record(stage, Limits(max_cost_usd=run.sweep.read_limits().max_cost_usd), choice)
    if pool == spec.pool:
        remember_variables(job.job)
    return run_stage_job(job, choice)


def evaluate_best(run: SupervisedSweep, number: int) -> JobStatus | None:
    """Run the stage after the search with the trial's newest checkpoint and outputs.

    None where there is no such stage, or it was completed; else how it ended.
    """
    spec = run.sweep.read_spec()
    if spec.evaluate is None:
        return None
    trial = run.sweep.job(number)
    done = JobStatus(state=JobState.COMPLETED, reason="", supervisor=0)
    status = evaluate(run.supervised_job(trial.job_id, trial.read_spec()), done, spec.pool, spec.evaluate)
    return None if status is done else status
