"""Where a job may go, chosen once per flow run and kept: a supervisor that is brought back does not choose anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from crucible.config import TrainConfig
from crucible.errors import ObjectExists, ObjectMissing
from crucible.estimate.history import PlannedCost
from crucible.jobs.job import Job
from crucible.jobs.records import Record
from crucible.placement.deadline import DeadlineCourse
from crucible.supervision.retry_policy import Placement

_SLOWER = 1.25
"""How much longer than on spot a job may take at the place that has to save its deadline."""


class Choice(Record):
    """The places to try, in order, and the estimate for the first; None where the catalog knows too little."""

    placements: list[Placement]
    planned: PlannedCost | None = None
    finish_by: datetime | None = None


def choice_of(job: Job, flow_run_id: str) -> Choice | None:
    """What this flow run chose when it first started; None when it did not get so far."""
    try:
        return Choice.model_validate(job.store.read_json(_key(flow_run_id)))
    except ObjectMissing:
        return None


def remember_choice(job: Job, flow_run_id: str, choice: Choice) -> None:
    """Keep it for whoever brings this flow run back; the first one stands."""
    try:
        job.store.create_json(_key(flow_run_id), choice.model_dump(mode="json"))
    except ObjectExists:
        return


def deadline_course(
    choice: Choice, config: TrainConfig, first_step: int, capacity: Callable[[str], bool | None]
) -> DeadlineCourse | None:
    """The course that keeps the choice's deadline; None when there is none to keep, or nothing to choose between.

    It takes a first place that can be taken away, and one that cannot, costs money and is about as fast. `first_step`
    is what is saved already; `capacity` tells whether a machine of a type is to be had on spot.
    """
    places = choice.placements
    pair = _spot_and_steady(places)
    if choice.finish_by is None or pair is None:
        return None
    spot, steady = places[pair[0]], pair[1]
    return DeadlineCourse(
        places=places,
        spot=pair[0],
        steady=steady,
        finish_by=choice.finish_by,
        total_steps=config.max_iters,
        seconds_per_step=max(1e-6, spot.hours * 3600 - spot.startup_seconds) / config.max_iters,
        report_steps=config.log_interval,
        first_step=first_step,
        capacity=lambda: capacity(spot.instance),
    )


def _spot_and_steady(places: Sequence[Placement]) -> tuple[int, int] | None:
    first = places[0]
    if first.mtbf_seconds is None or first.usd_per_hour <= 0:
        return None
    for number, place in enumerate(places):
        if place.mtbf_seconds is None and place.usd_per_hour > 0 and place.hours <= _SLOWER * first.hours:
            return 0, number
    return None


def _key(flow_run_id: str) -> str:
    return f"choices/{flow_run_id}.json"
