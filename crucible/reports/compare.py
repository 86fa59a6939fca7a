"""Jobs side by side: what differs in their configurations, their curves in one picture, metrics, time and cost."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crucible.formatting import UNKNOWN, duration, markdown_table, money
from crucible.jobs.job import Job
from crucible.jobs.metrics import Metrics, Row
from crucible.jobs.records import JobSpec
from crucible.reports.curve import thinned
from crucible.reports.evaluation import read_evaluation
from crucible.reports.picture import INK, MOST_POINTS, blank_figure, data_uri, drawing, plain_axes, png, points
from crucible.reports.summary import JobSummary, summarise

COLOURS = ("#5b97d6", "#d9552f", "#4d9c5a", "#a371d9", "#c9a227", "#38a3a5", "#d16ba5", "#8a8f98")
MOST_JOBS = len(COLOURS)
"""More curves than that cannot be told apart."""


@dataclass(frozen=True)
class ComparedJob:
    """One job of a comparison."""

    summary: JobSummary
    rows: Sequence[Row]
    evaluation: dict[str, Any] | None
    """What was measured of its finished model; None before that."""

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that decides what was trained and where."""
        spec, attempts = self.summary.spec, self.summary.attempts
        pools = ", ".join(dict.fromkeys(attempt.pool for attempt in attempts if attempt.pool))
        machines = ", ".join(dict.fromkeys(attempt.shown_machines for attempt in attempts if attempt.shown_machines))
        return {**_settings(spec), "pool": pools or None, "machine": machines or None}

    @property
    def best_val_loss(self) -> float | None:
        """The lowest validation loss on the way."""
        losses = (row["val_loss"] for row in self.rows if "val_loss" in row)
        return min(filter(math.isfinite, losses), default=None)

    def metrics(self) -> dict[str, float | int | str | None]:
        """What came out, by name."""
        summary, evaluation = self.summary, self.evaluation or {}
        return {
            "state": summary.state,
            "step": summary.step,
            "train_loss": summary.train_loss,
            "val_loss": summary.val_loss,
            "best_val_loss": self.best_val_loss,
            "evaluated_val_loss": evaluation.get("val_loss"),
            "perplexity": evaluation.get("perplexity"),
            "bits_per_byte": evaluation.get("bits_per_byte"),
            "attempts": len(summary.attempts),
            "seconds": summary.seconds,
            "cost_usd": summary.cost_usd,
        }


@dataclass(frozen=True)
class Comparison:
    """Jobs side by side, in the order in which they were named."""

    jobs: Sequence[ComparedJob]

    @property
    def names(self) -> list[str]:
        return [job.summary.job_id for job in self.jobs]

    def differing(self) -> dict[str, list[Any]]:
        """Settings that are not the same in all jobs, each with its value in every job; None where a job has none."""
        settings = [job.settings for job in self.jobs]
        names = dict.fromkeys(name for values in settings for name in values)
        columns = {name: [values.get(name) for values in settings] for name in names}
        return {name: values for name, values in columns.items() if any(value != values[0] for value in values)}

    def as_json(self) -> dict[str, Any]:
        """The comparison as JSON values."""
        columns = {name: dict(zip(self.names, values, strict=True)) for name, values in self.differing().items()}
        return {"jobs": {job.summary.job_id: job.metrics() for job in self.jobs}, "settings_that_differ": columns}


def compare(jobs: Sequence[Job]) -> Comparison:
    """Read the records of the jobs, once each."""
    read = []
    for job in jobs:
        rows = Metrics(job).rows()
        read.append(ComparedJob(summarise(job, rows), rows, read_evaluation(job)))
    return Comparison(read)


def comparison_page(comparison: Comparison) -> str:
    """One markdown page, with its picture inside."""
    parts = [f"# {' · '.join(comparison.names)}"]
    if any(job.rows for job in comparison.jobs):
        parts.append(f"![validation loss over steps, one line for each job]({data_uri(curves(comparison))})")
    parts += ["## Results", results_table(comparison), "## Settings that differ", settings_table(comparison)]
    return "\n\n".join(parts) + "\n"


def results_table(comparison: Comparison) -> str:
    """A row for each job."""
    headings = ["job", "state", "step", "validation loss", "best", "perplexity", "time", "attempts", "cost"]
    return markdown_table(headings, result_rows(comparison), numbers=range(2, len(headings)))


def result_rows(comparison: Comparison) -> list[list[str]]:
    """What came out of each job, as text."""
    rows = []
    for job in comparison.jobs:
        summary, figures = job.summary, job.metrics()
        rows.append(
            [
                summary.job_id,
                summary.state or "not started",
                f"{summary.step:,}",
                _figure(figures["evaluated_val_loss"] or summary.val_loss),
                _figure(job.best_val_loss),
                _figure(figures["perplexity"], 3),
                duration(summary.seconds),
                str(len(summary.attempts)),
                money(summary.cost_usd),
            ]
        )
    return rows


def settings_table(comparison: Comparison) -> str:
    """A row for each setting that differs; a sentence if there is none."""
    differing = comparison.differing()
    if not differing:
        return "None: the jobs have the same configuration."
    rows = [
        [name, *(UNKNOWN if value is None else str(value) for value in values)] for name, values in differing.items()
    ]
    return markdown_table(["setting", *comparison.names], rows)


def curves(comparison: Comparison) -> bytes:
    """A PNG of the loss over steps, a line for each job: of validation where a job reports it, else of training."""
    with drawing:
        figure = blank_figure(6.4, 3.2)
        axes = figure.add_subplot()
        for place, job in enumerate(comparison.jobs):
            colour = COLOURS[place % len(COLOURS)]
            train, val = points(job.rows, "train_loss"), points(job.rows, "val_loss")
            shown = val or thinned(train, MOST_POINTS)
            if val and train:  # faint behind it
                axes.plot(*zip(*thinned(train, MOST_POINTS), strict=True), color=colour, linewidth=0.7, alpha=0.35)
            if shown:
                axes.plot(*zip(*shown, strict=True), color=colour, linewidth=1.8, label=job.summary.job_id)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc="upper right", labelcolor=INK)
        axes.set_xlabel("step")
        axes.set_ylabel("validation loss (training loss behind)")
        plain_axes(axes)
        return png(figure)


def _settings(spec: JobSpec) -> dict[str, Any]:
    trainer = spec.config.model_dump(mode="json") if spec.config else {}
    script = {"command": shlex.join(spec.script.command), **spec.script.env} if spec.script else {}
    code = {"code": spec.code.digest[:12]} if spec.code else {}
    return {**trainer, **script, **code, "dataset": spec.dataset[:12] or None}


def _figure(value: Any, digits: int = 4) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"
