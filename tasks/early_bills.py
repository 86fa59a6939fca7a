"""What a stage on a pool costs before its job is on record.

A job is put on record once everything about it is known, which for a training includes its dataset. A preprocessing
that costs money may fail before that, and so may the choice of a machine after it: there is no job then, and its name
stays free. Such costs are kept in a job of the stage's own, `JOB-preprocess`, until the job comes to be.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self

from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger

from crucible.errors import ConfigError, CrucibleError, StoreError
from crucible.formatting import money
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec
from crucible.jobs.stage_records import StageRun, stage_name
from crucible.jobs.status import JobState, JobStatus
from tasks.supervising import SupervisedJob

STAGE = "preprocess"


class EarlyBills:
    """Bills until the job is on record, which it is at the end of the `with` block, unless that raises."""

    def __init__(self, run: SupervisedJob) -> None:
        self._run = run
        self._kept = Job(run.job.root, stage_name(run.spec.job_id, STAGE))
        self._bills: dict[str, StageRun] = {}

    def record(self, bill: StageRun) -> None:
        """Remember the newest figures of a run."""
        self._bills[bill.name] = bill

    def left_usd(self, left_usd: float | None) -> float | None:
        """What is left of the job's cap without what an earlier start that failed has spent; None: there is no cap."""
        return None if left_usd is None else left_usd - self._kept.stages_usd()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        stopped = isinstance(error, TerminationSignal) and self._run.watch.requested() is not None
        if error is None:
            self._move()
        elif stopped or isinstance(error, CrucibleError):  # a flow that is started again waits for the same run
            try:
                self._keep(JobState.CANCELLED if stopped else JobState.FAILED, str(error) or "stopped by a person")
            except (ConfigError, StoreError) as problem:
                spent = sum(bill.cost_usd for bill in self._bills.values())
                get_run_logger().warning("%s for %s are on no bill: %s", money(spent), STAGE, problem)

    def _move(self) -> None:
        """To the job, with what an earlier start has spent; nothing is left behind."""
        for bill in [*self._kept.read_stages(), *self._bills.values()]:
            if not bill.job:
                self._run.job.write_stage(bill)
        if self._kept.store.exists("job.json") and self._kept.read_spec().script is None:
            self._kept.delete()

    def _keep(self, state: JobState, reason: str) -> None:
        spent = [bill for bill in self._bills.values() if bill.cost_usd]
        if not spent:
            return
        if self._run.job.store.exists("job.json"):  # it is being continued
            for bill in spent:
                self._run.job.write_stage(bill)
            return
        known = self._run.spec
        made = JobSpec(job_id=self._kept.job_id, prepares=known.job_id, project=known.project, owner=known.owner)
        Job.create(self._run.job.root, made)
        for bill in spent:
            self._kept.write_stage(bill)
        status = JobStatus(state=state, reason=reason, supervisor=0)
        self._kept.store.write_model("status.json", status)
