"""Evaluate a job's model and export it.

    python -m flows.evaluate JOB [STORE]

Measured over the whole validation split; the model, its card and samples land in the store under the job.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from crucible.jobs.job import Job
from crucible.settings import MOST
from flows.forms import described
from flows.parameters import StoreName
from tasks.console import outlive_the_console
from tasks.evaluation import Wanted, evaluate_job
from tasks.machine import machine_tags
from tasks.observing import add_tags, job_tags
from tasks.stopping import stop_with_the_container
from tasks.storage import open_store

Format = Literal["huggingface", "nanogpt"]


@flow(name="evaluate", flow_run_name="evaluate {job}", persist_result=False)
@described
def evaluate(
    job: Annotated[str, Field(description="The job's name, as `crucible jobs ls` shows it.")],
    store: StoreName = "default",
    step: Annotated[
        int | None,
        Field(
            ge=0,
            le=MOST,
            description="Which checkpoint. Empty: the newest, or the one with the lowest validation loss in training, "
            "whichever is better over the whole split.",
        ),
    ] = None,
    export: Annotated[
        tuple[Format, ...],
        Field(description="Forms to export the model in: huggingface (transformers' GPT-2), nanogpt (ckpt.pt)."),
    ] = ("huggingface",),
    samples: Annotated[int, Field(ge=0, le=100, description="How many texts to generate.")] = 3,
    prompt: Annotated[str, Field(description="What they begin with; may be empty.")] = "",
) -> dict[str, Any]:
    """Full validation loss, perplexity, bits per byte, samples, a model card, and exports of a job's model."""
    outlive_the_console()
    stop_with_the_container()
    record = Job.open(open_store(store), job)
    add_tags(*job_tags(record.read_spec()), "stage:evaluate", *machine_tags())
    return evaluate_job(record, Wanted(step, export, samples, prompt))


if __name__ == "__main__":
    import sys

    evaluate(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "default")
