"""A stage of the pipeline on a pool of its own: a flow run of `preprocess/<pool>` or `evaluate/<pool>`, waited for."""

from __future__ import annotations

import time
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from crucible.errors import ServiceError
from crucible.jobs.records import JobSpec
from crucible.resources import Resources
from tasks.deployment_runs import start_run
from tasks.observing import job_tags

TRIES = 3
"""A stage can be repeated: whatever it left is found, or written again."""
LOOK_SECONDS = 2.0
SILENT_SECONDS = 300.0
"""How long the server may be out of reach."""


def run_stage(stage: str, pool: str, spec: JobSpec, parameters: dict[str, Any], wanted: Resources) -> None:
    """Run the stage on the pool to its end, again where its machine went away.

    A supervising flow that is started again waits for the run that it had started. Raises `ServiceError` where the
    stage failed, or the server has no such deployment.
    """
    logger = get_run_logger()
    for attempt in range(1, TRIES + 1):
        run = _start(stage, pool, spec, parameters, wanted, attempt)
        logger.info("%s runs on %s: flow run %s", stage, pool, run.name)
        state = _wait(run)
        if state.is_completed():
            return
        problem = f"{stage} on {pool} ended as {state.name}: {state.message or 'no reason given'}"
        if not state.is_crashed():
            raise ServiceError(problem)
        logger.warning(problem)
    raise ServiceError(f"{problem}; it was tried {TRIES} times")


def _start(
    stage: str, pool: str, spec: JobSpec, parameters: dict[str, Any], wanted: Resources, attempt: int
) -> FlowRun:
    return start_run(
        f"{stage}/{pool}",
        missing=f"{stage}_pool: there is no deployment {stage}/{pool} on this server; run `crucible up`, and the "
        f"command that set the pool up again",
        what=f"{stage} on {pool}",
        parameters=parameters,
        flow_run_name=f"{spec.job_id}-{stage}",
        tags=[*job_tags(spec), f"stage:{stage}", f"pool:{pool}"],
        idempotency_key=f"{flow_run.id}/{stage}/{attempt}",
        job_variables=wanted.job_variables(pool),
    )


def _wait(run: FlowRun) -> State:
    """Wait for the run's end. Raises `ServiceError` when the server stays out of reach."""
    heard = time.monotonic()
    while True:
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(run.id).state
            heard = time.monotonic()
        except (httpx.HTTPError, PrefectException) as error:
            if time.monotonic() > heard + SILENT_SECONDS:
                raise ServiceError(f"the Prefect server does not answer: {error}") from error
        else:
            if state is not None and state.is_final():
                return state
        time.sleep(LOOK_SECONDS)
