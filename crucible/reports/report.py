"""The report of a job: one markdown page that carries its own picture."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from crucible.agent.last_lines import read_last_lines
from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import Checkpoint, best_checkpoint
from crucible.formatting import (
    UNKNOWN,
    as_prose,
    counted,
    duration,
    fenced,
    markdown_table,
    money,
    printable,
    settings_table,
    size,
)
from crucible.jobs.job import Job
from crucible.jobs.metrics import Metrics
from crucible.jobs.records import JobSpec
from crucible.jobs.status import JobState
from crucible.reports.bill import bill
from crucible.reports.evaluation import evaluation_summary, read_evaluation
from crucible.reports.interval import interval_label
from crucible.reports.machine import machine_section
from crucible.reports.picture import data_uri, loss_curve, panels
from crucible.reports.summary import AttemptSummary, JobSummary, summarise
from crucible.store import store_option
from crucible.trackers.records import TrackerRecord, read_records

FENCE = "`" * 6
"""Around printed lines, which may have a fence of their own."""
SHORT_DIGEST = 12
"""Characters of a dataset's digest on the page: all 32 of them are wider than a telephone's column."""
_STATES = {
    None: "Not started",
    JobState.RUNNING: "Running",
    JobState.COMPLETED: "Completed",
    JobState.PAUSED: "Paused",
    JobState.BUDGET_STOP: "Stopped at its limits",
    JobState.CANCELLED: "Cancelled",
    JobState.FAILED: "Failed",
    JobState.STOPPED: "Given up",
}


def job_report(job: Job, metrics: Metrics | None = None) -> str:
    """The page, from the records as they are now; also of a job that has no attempt yet.

    Whoever calls again and again gives the same `metrics`, which reads only what is new.
    """
    history = (metrics or Metrics(job)).rows()
    summary = summarise(job, history)
    starts = {a.number: a.from_step for a in summary.attempts if a.from_step is not None}
    parts = [f"# {summary.job_id}", headline(summary)]
    if (parent := summary.spec.forked_from) is not None:
        parts.append(f"Forked from `{parent.job}` at step {parent.step:,}; what came before is in that job's report.")
    if summary.reason:
        parts.append(as_prose(summary.reason))
    parts += _printed_last(job, summary)
    if trackers := read_records(job):
        parts.append("Also in " + ", ".join(map(_tracker, trackers)))
    if summary.warnings:
        parts.append("\n".join(f"- Left out: {as_prose(warning)}" for warning in summary.warnings))
    if history:
        parts.append(f"![training and validation loss over steps]({data_uri(loss_curve(history, starts))})")
        if (others := panels(history)) is not None:
            parts.append(f"![learning rate, speed, utilisation and memory over steps]({data_uri(others)})")
    parts += machine_section(history)
    evaluation = read_evaluation(job)
    if evaluation is not None:
        parts += ["## Model", evaluation_summary(evaluation)]
    if summary.attempts:
        parts += ["## Attempts", attempts_table(summary.attempts), "\n".join(map(_story, summary.attempts))]
    if summary.cost_usd:
        parts += ["## Cost", bill(summary)]
    checkpoints = Checkpoints(job).list()
    fixed = summary.spec.config.checkpoint_interval_seconds if summary.spec.config else None
    interval = interval_label(summary.attempts, fixed)
    if checkpoints or interval:
        parts += ["## Checkpoints"]
        parts += [f"Made {interval}."] if interval else []
        parts += [inexact] if (inexact := inexact_resume(summary) or inexact_kernels(checkpoints)) else []
        parts += [changed] if (changed := changed_nodes(summary)) else []
        if checkpoints:
            parts += [checkpoints_table(checkpoints), "Fetch one:", fetch_commands(checkpoints, store_option(job.root))]
    if settings := _settings(summary.spec):
        dataset = {"dataset": summary.spec.dataset[:SHORT_DIGEST]} if summary.spec.dataset else {}
        parts += ["## Configuration", settings_table({**dataset, **settings})]
    return "\n\n".join(parts) + "\n"


def _printed_last(job: Job, summary: JobSummary) -> list[str]:
    """The last lines of the attempt that a job failed with; the cause is among them."""
    if summary.state not in (JobState.FAILED, JobState.STOPPED) or not summary.attempts:
        return []
    number = summary.attempts[-1].number
    if not (lines := read_last_lines(job.attempt(number))):
        return []
    text = "\n".join(printable(line) for line in lines)
    everything = f"Everything that it printed: `crucible logs {job.job_id} --attempt {number}{store_option(job.root)}`"
    return ["## What it printed last", f"{FENCE}text\n{text}\n{FENCE}", everything]


def _tracker(record: TrackerRecord) -> str:
    """A link to the tracker's page of the job, or the command that shows it."""
    if record.url.startswith(("http://", "https://")):
        return f"[{record.name}]({record.url})"
    return f"{record.name} (`{record.url}`)" if record.url else record.name


def inexact_resume(summary: JobSummary) -> str:
    """What a restart changes in a script that resumes from its own file; empty where nothing is known to change."""
    script = summary.spec.script
    if script is None or script.checkpoint is None or not any(attempt.from_step for attempt in summary.attempts):
        return ""
    seed = (
        "its seeds are shifted at each restart (`reseed: true`)"
        if script.reseed
        else "one that sets its seed at every start draws the same batches again; `reseed: true` shifts the seed"
    )
    return f"**The resume was not exact**: the script restored what its own checkpoint file holds, and {seed}."


def inexact_kernels(checkpoints: Sequence[Checkpoint]) -> str:
    """Why the trainer could not be exact on its GPU, as the newest checkpoint records it; empty if it was."""
    environment = checkpoints[0].state.get("environment") if checkpoints else None
    if not isinstance(environment, dict) or environment.get("exact") is not False:
        return ""
    reason = printable(str(environment.get("not_exact_because") or "a kernel is not deterministic"))
    return f"**This run is not exact**: {reason}. A resumed run is exact in state, but not in bits."


def changed_nodes(summary: JobSummary) -> str:
    """That the number of machines was not the same throughout; empty if it was, or nothing was trained."""
    counts = [a.nodes for a in summary.attempts if a.from_step is not None and (a.to_step or 0) > a.from_step]
    if len(set(counts)) < 2:
        return ""
    shown = ", then ".join(str(count) for place, count in enumerate(counts) if place == 0 or counts[place - 1] != count)
    return (
        f"**This run is exact in data, not in bits**: it trained on {shown} nodes. The rows of every step are those of "
        f"an undisturbed run; sums of gradients round differently on another number of nodes."
    )


def _settings(spec: JobSpec) -> dict[str, Any]:
    script = {"command": shlex.join(spec.script.command), **spec.script.settings} if spec.script else {}
    return (spec.config.model_dump(mode="json") if spec.config else {}) | script


def headline(summary: JobSummary) -> str:
    """State, progress, loss, time left and cost on one line of markdown."""
    facts = [f"**{_STATES[summary.state]}**" + _where(summary)]
    if summary.total_steps:
        share = f" ({summary.step / summary.total_steps:.0%})" if summary.running else ""
        facts.append(f"step {summary.step:,} of {summary.total_steps:,}{share}")
    elif summary.step:
        facts.append(f"step {summary.step:,}")
    if summary.val_loss is not None:
        facts.append(f"validation loss {summary.val_loss:.4f}")
    elif summary.train_loss is not None:
        facts.append(f"training loss {summary.train_loss:.4f}")
    if summary.running and summary.seconds_left is not None:
        facts.append(f"about {duration(summary.seconds_left)} left")
    elif summary.seconds:
        facts.append(f"{duration(summary.seconds)} in {counted(len(summary.attempts), 'attempt')}")
    allowed = summary.limits.max_cost_usd
    left = f", about {money(summary.cost_left_usd)} left" if summary.cost_left_usd else ""
    facts.append(money(summary.cost_usd) + (f" of {money(allowed)}" if allowed is not None else "") + left)
    return " · ".join(facts)


def _where(summary: JobSummary) -> str:
    if not summary.running or not summary.attempts:
        return ""
    attempt = summary.attempts[-1]
    machine = f" ({attempt.shown_machines})" if attempt.shown_machines else ""
    return f" on {attempt.pool}{machine}, attempt {attempt.number}" if attempt.pool else ""


def _story(attempt: AttemptSummary) -> str:
    """Why the attempt was made, which notices it received, how it ended."""
    parts = [attempt.launched_because, *attempt.notices]
    if attempt.message and attempt.message not in attempt.notices:
        parts.append(attempt.message)
    story = " → ".join(dict.fromkeys(" ".join(part.split()) for part in parts if part))
    return f"- **Attempt {attempt.number}**: {as_prose(story or attempt.end)}"


def attempts_table(attempts: Sequence[AttemptSummary]) -> str:
    """One row for each attempt, first to last. Cells have several lines, so that the table fits on a telephone."""
    rows = [
        [
            "<br>".join(filter(None, [f"**{a.number}**", a.pool or UNKNOWN, a.shown_machines])),
            _steps(a),
            a.end,
            money(a.cost_usd),
        ]
        for a in attempts
    ]
    return markdown_table(["attempt", "steps", "end", "cost"], rows, numbers=(3,))


def _steps(attempt: AttemptSummary) -> str:
    """From where to where, what was lost at the end, and how long the start took."""
    if attempt.from_step is None:
        return UNKNOWN
    lines = [f"{_number(attempt.from_step)} → {_number(attempt.to_step)}"]
    if attempt.end_reason:
        lines.append(f"{_number(attempt.steps_lost)} lost")
    if attempt.recovery_seconds is not None:
        lines.append(f"recovered in {duration(attempt.recovery_seconds)}")
    return "<br>".join(lines)


def checkpoints_table(checkpoints: Sequence[Checkpoint]) -> str:
    """One row for each commit that counts, newest first."""
    best = best_checkpoint(checkpoints)
    rows = []
    for index, checkpoint in enumerate(checkpoints):
        marks = ["newest"] if index == 0 else []
        marks += ["best"] if checkpoint is best else []
        marks += ["with the outputs"] if checkpoint.has_output else []
        rows.append(
            [
                "<br>".join([f"**{_number(checkpoint.shown_step)}**", *marks]),
                loss_cell(checkpoint),
                f"{checkpoint.committed_at:%Y-%m-%d %H:%M:%S} UTC<br>{size(checkpoint.bytes)}, "
                f"attempt {checkpoint.attempt}",
            ]
        )
    return markdown_table(["step", "validation loss", "committed"], rows)


def fetch_commands(checkpoints: Sequence[Checkpoint], store: str) -> str:
    """A line for each checkpoint, in a block: a store's long address would make a table wider than a telephone.

    `store`: the option that names their store, or nothing.
    """
    return fenced("\n".join(f"crucible checkpoints get {c.job_id} . --step {c.step}{store}" for c in checkpoints))


def loss_cell(checkpoint: Checkpoint) -> str:
    """The loss by which checkpoints are compared, and that of the whole split where it was measured."""
    compared, whole = checkpoint.compared_loss, checkpoint.val_loss
    if compared is None:
        return UNKNOWN
    return f"{compared:.4f}" if whole is None or whole == compared else f"{compared:.4f} (whole split {whole:.4f})"


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"
