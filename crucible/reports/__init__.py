"""Pages and tables about a job: its loss curve, its attempts, its checkpoints, its cost.

    metrics.py     what the attempts reported, as one history
    records.py     a job's records at one moment, each read once
    summary.py     the state of a job and its attempts: a pure function of those records
    picture.py     the loss curve as a PNG
    interval.py    how often checkpoints are made, and why
    evaluation.py  what was measured of the finished model
    report.py      all of it on one markdown page

Everything here is read from the job's records. Nothing imports Prefect; pandas and matplotlib are imported only where
they are used.
"""

from crucible.jobs.metrics import Metrics, merged_metrics
from crucible.reports.picture import loss_curve
from crucible.reports.report import job_report
from crucible.reports.summary import AttemptSummary, JobSummary, summarise

__all__ = [
    "AttemptSummary",
    "JobSummary",
    "Metrics",
    "job_report",
    "loss_curve",
    "merged_metrics",
    "summarise",
]
