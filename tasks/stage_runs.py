"""A stage of the pipeline on a pool of its own: a flow run of `preprocess/<pool>` or `evaluate/<pool>`, waited for.

Its machine is on the job's bill, at the price of the machine that took it up, and counts towards the job's cap.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import PrefectException, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from crucible.billing.machine_price import EC2_POOLS, machine_price
from crucible.catalog.ec2 import PriceUnavailable, spot_price
from crucible.catalog.offers import load_catalog
from crucible.errors import CrucibleError, ServiceError, StoreUnavailable
from crucible.formatting import money
from crucible.jobs.records import JobSpec, Launch, StopRequest, now
from crucible.jobs.stage_records import StageRun
from crucible.local.pool_commands import COMMANDS
from crucible.placement.script import place_script
from crucible.pools.skypilot import offers as skypilot_offers
from crucible.resources import Resources
from crucible.store.retry import persist, wait_at_most
from tasks.deployment_runs import cancel_run, start_run
from tasks.observing import job_tags

TRIES = 3
"""A stage can be repeated: whatever it left is found, or written again."""
LOOK_SECONDS = 2.0
SILENT_SECONDS = 300.0
"""How long the server may be out of reach."""
RECORD_SECONDS = 10.0
"""For the last figures of a cancelled stage: Prefect's process worker waits 30 s between SIGTERM and SIGKILL."""
MODAL_CPU_USD_PER_HOUR = 0.335
"""One core and 8 GiB, as every offer of Modal's in the catalog contains them beside its GPU."""


class StageOverBudget(CrucibleError):
    """The job's cap, or a budget that it shares with others, does not pay for the stage."""


@dataclass(frozen=True)
class StageRequest:
    """A stage, and where it runs."""

    stage: str
    pool: str
    spec: JobSpec
    parameters: dict[str, Any]
    wanted: Resources
    max_cost_usd: float | None = None
    """What is left of the job's cap; None: no cap."""
    record: Callable[[StageRun], None] = field(default=lambda run: None)
    """Puts the run on the job's bill, again and again while it runs."""
    over_budget: Callable[[], str | None] = lambda: None
    """Why a budget that the job shares with others does not pay for the stage."""
    stop_requested: Callable[[], StopRequest | None] = lambda: None
    """Whether a person wants this flow run to stop; asked when it is interrupted. Its stage is cancelled then."""


def run_stage(request: StageRequest) -> None:
    """Run the stage on the pool to its end, again where its machine went away.

    A supervising flow that is started again waits for the run that it had started. Raises `ServiceError` where the
    stage failed, or the server has no such deployment, and `StageOverBudget` where the job's cap or a budget that it
    shares ends it.
    """
    logger = get_run_logger()
    stage, pool, left, problem = request.stage, request.pool, request.max_cost_usd, ""
    numbers, tries = itertools.count(1), 0
    while tries < TRIES:
        if left is not None and left <= 0:
            raise StageOverBudget(f"{stage} on {pool} was not started: the job's max_cost_usd is used up")
        if planned_machine(pool, request.wanted).usd_per_hour and (reason := request.over_budget()) is not None:
            raise StageOverBudget(f"{stage} on {pool} was not started: {reason}")
        run = _start(request, next(numbers))
        if run.state is not None and run.state.is_cancelled():
            continue  # when a person paused this flow run, which goes on now
        tries += 1
        logger.info("%s runs on %s: flow run %s", stage, pool, run.name)
        state, cost_usd = _wait(run, request, left)
        if state.is_completed():
            if cost_usd:
                logger.info("%s on %s cost %s", stage, pool, money(cost_usd))
            return
        problem = f"{stage} on {pool} ended as {state.name}: {state.message or 'no reason given'}"
        if not state.is_crashed():
            raise ServiceError(problem)
        logger.warning(problem)
        left = None if left is None else left - cost_usd
    raise ServiceError(f"{problem}; it was tried {TRIES} times")


def _start(request: StageRequest, attempt: int) -> FlowRun:
    stage, pool, spec = request.stage, request.pool, request.spec
    variables: dict[str, Any] = {}
    if pool in EC2_POOLS:
        tags = {"job": spec.job_id, "stage": stage, "project": spec.project, "owner": spec.owner}
        variables = {name: value for name, value in tags.items() if value}
    planned = planned_machine(pool, request.wanted)
    if pool == "modal" and planned.instance:
        variables = {"gpu": [planned.instance], "usd_per_hour": planned.usd_per_hour}
    if pool == "skypilot":
        variables = skypilot_offers.job_variables(planned.instance)
    return start_run(
        f"{stage}/{pool}",
        missing=f"{stage}_pool: there is no deployment {stage}/{pool} on this server; a pool that an earlier version "
        f"has set up gets it when it is set up again: {COMMANDS.get(pool, ('crucible up',))[0]}",
        what=f"{stage} on {pool}",
        parameters=request.parameters,
        flow_run_name=f"{spec.job_id}-{stage}",
        tags=[*job_tags(spec), f"stage:{stage}", f"pool:{pool}"],
        idempotency_key=f"{flow_run.id}/{stage}/{attempt}",
        job_variables=request.wanted.job_variables(pool) | variables,
    )


def _wait(run: FlowRun, request: StageRequest, left: float | None) -> tuple[State, float]:
    """Wait for the run's end; returns its state and what it cost.

    Raises as `_follow` does, and Prefect's `TerminationSignal`. The run is cancelled where it costs too much, and where
    a person wants this flow run to stop; otherwise a flow run that is started again waits for it.
    """
    meter = _Meter(request)
    try:
        return _follow(run, meter, left)
    except StageOverBudget as error:
        meter.cancel(run, str(error))
        raise
    except TerminationSignal:
        if (stop := request.stop_requested()) is not None:
            meter.cancel(run, stop.reason)
        raise


def _follow(run: FlowRun, meter: _Meter, left: float | None) -> tuple[State, float]:
    """Look at the run until it has ended.

    Raises `ServiceError` when the server stays out of reach, `StageOverBudget` once more than `left` is spent, or
    a shared budget.
    """
    answered_at, request = time.monotonic(), meter.request
    while True:
        try:
            with get_client(sync_client=True) as client:
                seen = client.read_flow_run(run.id)
            answered_at = time.monotonic()
        except (httpx.HTTPError, PrefectException) as error:
            if time.monotonic() > answered_at + SILENT_SECONDS:
                raise ServiceError(f"the Prefect server does not answer: {error}") from error
        else:
            bill = meter.read(seen)
            recorded = bill is None or meter.record(bill)
            cost = bill.cost_usd if bill else 0.0
            if seen.state is not None and seen.state.is_final() and recorded:
                return seen.state, cost
            if left is not None and cost >= left:
                raise StageOverBudget(
                    f"{request.stage} on {request.pool} was stopped at {money(cost)}: the job's max_cost_usd is used up"
                )
            if cost and (reason := request.over_budget()) is not None:
                raise StageOverBudget(f"{request.stage} on {request.pool} was stopped at {money(cost)}: {reason}")
        time.sleep(LOOK_SECONDS)


class _Meter:
    """What a run of a stage has cost: its time in the state Running, at the price of its machine."""

    def __init__(self, request: StageRequest) -> None:
        self.request = request
        self._seen: FlowRun | None = None
        self._unrecorded = False
        self._planned = planned_machine(request.pool, request.wanted)
        self._priced: dict[tuple[str, ...], tuple[str, float]] = {}

    def read(self, run: FlowRun) -> StageRun | None:
        """None before a machine has taken it up."""
        self._seen = run
        if run.start_time is None:
            return None
        over = run.state is not None and run.state.is_final()
        seconds = max(0.0, ((run.end_time if over and run.end_time else now()) - run.start_time).total_seconds())
        instance, usd_per_hour = self._machine(run)
        return StageRun(
            name=str(run.id),
            stage=self.request.stage,
            pool=self.request.pool,
            instance=instance,
            usd_per_hour=usd_per_hour,
            seconds=seconds,
            cost_usd=round(seconds * usd_per_hour / 3600, 6),
            end=(run.state.name or "").lower() if over and run.state else "",
            started_at=run.start_time,
        )

    def record(self, bill: StageRun) -> bool:
        """Whether it is on the job's bill: a store that is away for a while ends no stage."""
        try:
            self.request.record(bill)
        except StoreUnavailable as error:
            if not self._unrecorded:
                get_run_logger().warning("%s is not on the bill yet: %s", self.request.stage, error)
            self._unrecorded = True
            return False
        self._unrecorded = False
        return True

    def cancel(self, run: FlowRun, why: str) -> None:
        """End the run for its pool, and on the bill."""
        seen = self._seen or run
        cancel_run(seen, why)
        if (bill := self.read(seen)) is not None:
            last = bill.model_copy(update={"end": "cancelled"})
            persist(lambda: self.request.record(last), wait_at_most(RECORD_SECONDS))

    def _machine(self, run: FlowRun) -> tuple[str, float]:
        """Instance and price: as the machine has tagged its run, else as planned. Asked once for each machine."""
        tags = dict(tag.split(":", 1) for tag in run.tags if ":" in tag)
        key = tuple(tags.get(name, "") for name in ("instance", "lifecycle", "zone"))
        if key not in self._priced:
            self._priced[key] = self._priced_machine(*key)
        return self._priced[key]

    def _priced_machine(self, instance: str, lifecycle: str, zone: str) -> tuple[str, float]:
        if not instance:
            return self._planned.instance, self._planned.usd_per_hour
        market = None
        if lifecycle == "spot":
            with suppress(PriceUnavailable):
                market = spot_price(instance, zone)
        offers = {offer.key: offer for offer in load_catalog()}
        return instance, machine_price(self._planned, instance, lifecycle, market, offers).usd_per_hour


def planned_machine(pool: str, wanted: Resources) -> Launch:
    """The machine that the pool is expected to give: its cheapest, on Modal without a GPU where none is wanted."""
    if pool == "modal" and wanted.gpus == 0:
        return Launch(number=1, pool=pool, reason="", usd_per_hour=MODAL_CPU_USD_PER_HOUR)
    gpu_machine = wanted if wanted.gpus else wanted.model_copy(update={"gpus": None})
    place = place_script(pool, gpu_machine).placements[0]
    return Launch(number=1, pool=place.pool, reason="", instance=place.instance, usd_per_hour=place.usd_per_hour)
