"""Attempts, checkpoints and settings as markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from crucible.checkpoints.commits import Checkpoint, best_checkpoint
from crucible.formatting import duration, size, usd
from crucible.reports.summary import AttemptSummary

UNKNOWN = "–"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """A markdown table; the columns in `numbers` are set to the right."""
    rule = ["---:" if i in numbers else "---" for i in range(len(headings))]
    lines = [list(headings), rule, *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def attempts_table(attempts: Sequence[AttemptSummary]) -> str:
    """One line for each attempt, first to last."""
    headings = ["attempt", "pool", "instance", "from step", "to step", "steps lost", "recovered in", "end", "cost"]
    rows = [
        [
            str(a.number),
            a.pool or UNKNOWN,
            a.instance or UNKNOWN,
            _number(a.from_step),
            _number(a.to_step),
            _number(a.steps_lost) if a.end_reason else UNKNOWN,
            duration(a.recovery_seconds) if a.recovery_seconds is not None else UNKNOWN,
            a.end,
            usd(a.cost_usd),
        ]
        for a in attempts
    ]
    return markdown_table(headings, rows, numbers=(0, 3, 4, 5, 6, 8))


def checkpoints_table(checkpoints: Sequence[Checkpoint]) -> str:
    """One line for each commit that counts, newest first."""
    best = best_checkpoint(checkpoints)
    rows = []
    for index, checkpoint in enumerate(checkpoints):
        marks = ["newest"] if index == 0 else []
        marks += ["best"] if checkpoint is best else []
        rows.append(
            [
                _number(checkpoint.step),
                str(checkpoint.attempt),
                loss_cell(checkpoint),
                size(checkpoint.bytes),
                f"{checkpoint.committed_at:%Y-%m-%d %H:%M:%S} UTC",
                ", ".join(marks),
            ]
        )
    headings = ["step", "attempt", "validation loss", "size", "committed", ""]
    return markdown_table(headings, rows, numbers=(0, 1, 2, 3))


def loss_cell(checkpoint: Checkpoint) -> str:
    """The loss by which checkpoints are compared, and beside it that over the whole split, where it was measured."""
    compared, whole = checkpoint.compared_loss, checkpoint.val_loss
    if compared is None:
        return UNKNOWN
    return f"{compared:.4f}" if whole is None or whole == compared else f"{compared:.4f} (whole split {whole:.4f})"


def settings_table(settings: Mapping[str, Any]) -> str:
    """Names and values."""
    rows = [[f"`{name}`", UNKNOWN if value is None else f"`{value}`"] for name, value in settings.items()]
    return markdown_table(["setting", "value"], rows)


def fenced(text: str) -> str:
    """The text as it is, even if it has backticks of its own."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _number(value: int | None) -> str:
    return UNKNOWN if value is None else f"{value:,}"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
