"""From a ranking to the places a supervisor tries."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crucible.config import TrainConfig
from crucible.errors import ConfigError
from crucible.estimate.needs import needs_of
from crucible.estimate.ranking import Preferences, Recommendation, recommend
from crucible.placement.choice import placements, planned_cost
from tests.catalog.offers import LOCAL, MODAL, ON_DEMAND, SPOT


def ranking(preferences: Preferences | None = None) -> Recommendation:
    sizes = [replace(SPOT, instance=f"g.{size}", usd_per_hour=0.5 + size / 100) for size in range(5)]
    offers = [*sizes, ON_DEMAND, MODAL, LOCAL]
    return recommend(needs_of(TrainConfig(), 65), offers, preferences or Preferences(optimize_for="time"))


def test_a_pool_that_fails_gives_way_to_another_kind() -> None:
    found = ranking()
    places = placements(found)
    assert [place.pool for place in places].count("ec2-spot") == 2
    assert {place.pool for place in places} == {"ec2-spot", "ec2-on-demand", "modal", "local"}
    best = found.ranked[0].estimate.offer
    assert (places[0].pool, places[0].usd_per_hour) == (best.pool, best.usd_per_hour)
    assert places[0].reason.startswith("best of the offers that fit (")
    assert places[1].reason.startswith("number 2 of the offers that fit (")


def test_a_placement_says_how_often_it_is_interrupted() -> None:
    by_pool = {place.pool: place for place in placements(ranking())}
    assert by_pool["ec2-spot"].mtbf_seconds == 36_000
    assert by_pool["ec2-on-demand"].mtbf_seconds is None
    assert by_pool["ec2-spot"].instance.startswith("g.")
    assert by_pool["local"].instance == ""


def test_nothing_that_fits_is_an_error_with_the_reasons() -> None:
    nothing = ranking(Preferences(pools=("mars",)))
    for ask in (placements, planned_cost):
        with pytest.raises(ConfigError, match=r"no offer fits; .*not among those allowed"):
            ask(nothing)


def test_the_plan_is_that_of_the_best() -> None:
    found = ranking()
    plan = planned_cost(found)
    best = found.ranked[0].estimate
    assert (plan.offer, plan.low_hours, plan.hours, plan.high_hours) == (
        best.offer.key,
        best.hours.low,
        best.hours.likely,
        best.hours.high,
    )
