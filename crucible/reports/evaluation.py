"""The evaluation of a job's model, as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crucible.errors import ObjectMissing
from crucible.formatting import fenced, markdown_table, size
from crucible.jobs.job import Job
from crucible.settings import shown

EVALUATION = "evaluation.json"
"""Below the job: what was measured of its model, and where the model is."""
_FIX = "delete it, and evaluate the job again"
LONGEST_SAMPLE = 600
"""Characters of a sample on a page; all of them are in the model's samples.txt."""


def read_evaluation(job: Job) -> dict[str, Any] | None:
    """The job's newest evaluation, or None before there was one."""
    try:
        evaluation = job.store.read_json(EVALUATION, _FIX)
    except ObjectMissing:
        return None
    if not isinstance(evaluation, dict):
        raise job.store.damaged(EVALUATION, f"it is no JSON object but {shown(evaluation)}", _FIX)
    return evaluation


def evaluation_summary(evaluation: Mapping[str, Any]) -> str:
    """The measurements, where the model is, and a sample."""
    measured = [
        f"{evaluation['step']:,}",
        f"{evaluation['val_loss']:.4f}",
        f"{evaluation['perplexity']:.3f}",
        f"{evaluation['bits_per_byte']:.4f}",
        f"{evaluation['tokens']:,}",
    ]
    headings = ["step", "validation loss (nats per token)", "perplexity", "bits per byte", "tokens"]
    parts = [
        markdown_table(headings, [measured], numbers=range(len(headings))),
        "Over the whole validation split. The model and its card:",
        fenced(evaluation["uri"]),  # a long address scrolls in its block, not with the page
    ]
    if evaluation.get("sample"):
        parts.append(fenced(evaluation["sample"][:LONGEST_SAMPLE]))
    return "\n\n".join(parts)


def evaluation_page(evaluation: Mapping[str, Any], curve_uri: str) -> str:
    """The artifact that an evaluation leaves: measurements, sample, loss curve and the files of the model."""
    files = [[f"`{name}`", size(count)] for name, count in evaluation["files"].items()]
    tried = [[f"{entry['step']:,}", f"{entry['val_loss']:.4f}"] for entry in evaluation["candidates"]]
    parts = [f"# {evaluation['job']}: the model of step {evaluation['step']:,}", evaluation_summary(evaluation)]
    if len(tried) > 1:
        compared = markdown_table(["step", "validation loss"], tried, numbers=(0, 1))
        parts += ["Measured against each other, the better one was taken:", compared]
    parts.append(f"![training and validation loss over steps]({curve_uri})")
    parts += ["## Files", markdown_table(["file", "size"], files, numbers=(1,))]
    return "\n\n".join(parts) + "\n"
