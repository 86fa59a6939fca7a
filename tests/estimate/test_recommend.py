"""The ranking: what is best under each wish, what is left out and why, and that nothing outside decides."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from crucible.config import TrainConfig
from crucible.estimate.needs import Needs, needs_of
from crucible.estimate.ranking import PoolState, Preferences, Recommendation, recommend, why_nothing_fits
from crucible.estimate.speed import Speed
from crucible.placement.choice import placements
from tests.catalog.offers import ALL, BIG, LOCAL, MODAL, ON_DEMAND, SPOT, offer_like

# An hour on the spot machine, ten minutes on the big one, ten hours here; the loss at the end adds a third.
SECONDS = {SPOT.key: 3600, ON_DEMAND.key: 3600, MODAL.key: 3600, BIG.key: 600, LOCAL.key: 36_000}


def one_step() -> Needs:
    config = TrainConfig(eval_interval=10**6, eval_iters=1, max_iters=1, warmup_iters=0)
    return needs_of(config, 65)


def ranking(preferences: Preferences | None = None, **options: object) -> Recommendation:
    probed = {key: Speed.within(seconds, 1.2, "probe", "test") for key, seconds in SECONDS.items()}
    return recommend(one_step(), ALL, preferences or Preferences(), (), probed, **options)  # type: ignore[arg-type]


def order(found: Recommendation) -> list[str]:
    return [entry.estimate.offer.key for entry in found.ranked]


def reasons(found: Recommendation) -> dict[str, str]:
    return {entry.offer.key: entry.reason for entry in found.rejected}


def test_each_wish_has_its_own_best() -> None:
    assert order(ranking(Preferences(optimize_for="cost"))) == [LOCAL.key, SPOT.key, MODAL.key, BIG.key, ON_DEMAND.key]
    assert order(ranking(Preferences(optimize_for="time")))[0] == BIG.key
    # Balanced: $0.71 and 1.4 h beat ten free hours as long as an hour is worth more than six cents.
    assert order(ranking(Preferences(optimize_for="balanced")))[0] == SPOT.key
    assert order(ranking(Preferences(optimize_for="balanced", value_of_hour_usd=0.01)))[0] == LOCAL.key
    assert order(ranking(Preferences(optimize_for="balanced", value_of_hour_usd=50)))[0] == BIG.key


@pytest.mark.parametrize(
    ("wish", "left_out"),
    [
        ({"pools": ("local",)}, {"pool ec2-spot is not among those allowed": SPOT.key}),
        ({"privacy": "dedicated"}, {"shared with other customers": MODAL.key}),
        ({"uninterrupted": True}, {"can be interrupted": SPOT.key}),
        ({"max_cost_usd": 0.9}, {"above max_cost_usd = $0.90": ON_DEMAND.key}),
        ({"finish_within_hours": 2}, {"likely to take 13.3 h, longer than the 2.0 h allowed": LOCAL.key}),
        ({"longest_hours": 5}, {"raise longest_hours": LOCAL.key}),
    ],
)
def test_what_is_left_out_says_why(wish: dict[str, object], left_out: dict[str, str]) -> None:
    found = ranking(Preferences.model_validate(wish))
    for reason, key in left_out.items():
        assert reason in reasons(found)[key]
        assert key not in order(found)
    assert len(found.ranked) + len(found.rejected) == len(ALL)


def test_a_cap_refuses_by_the_low_estimate_and_warns_by_the_likely_one() -> None:
    # Spot: low about $0.57, likely about $0.71.
    found = ranking(Preferences(max_cost_usd=0.65))
    spot = next(entry for entry in found.ranked if entry.estimate.offer.key == SPOT.key)
    assert "likely to stop at max_cost_usd before the end" in spot.cons


def test_pros_and_cons_are_the_offers_own() -> None:
    entries = {entry.estimate.offer.key: entry for entry in ranking().ranked}
    assert "the fastest" in entries[BIG.key].pros
    assert "the cheapest that is rented" in entries[SPOT.key].pros
    assert any(pro.endswith("below on-demand") for pro in entries[SPOT.key].pros)
    assert any("interruptions expected" in con for con in entries[SPOT.key].cons)
    assert "not interrupted" in entries[ON_DEMAND.key].pros
    assert "hosts shared with other customers" in entries[MODAL.key].cons
    assert entries[LOCAL.key].pros[0].startswith("your own machine")


def test_pools_that_cannot_start_now() -> None:
    pools = {"ec2-spot": PoolState(0), "modal": PoolState(1, paused=True), "local": PoolState(1, queued=3)}
    pools["ec2-on-demand"] = PoolState(2, capacity={"g.small": False, "g.big": False})
    shown = ranking(pools=pools)
    assert len(shown.ranked) == len(ALL), "otherwise it is only a con"
    cons = {entry.estimate.offer.key: entry.cons for entry in shown.ranked}
    assert "pool ec2-spot has no worker online" in cons[SPOT.key]
    assert "3 runs wait in its queue" in cons[LOCAL.key]
    ready = ranking(pools=pools, only_ready=True)
    assert order(ready) == [LOCAL.key]
    assert reasons(ready)[MODAL.key] == "pool modal is paused"
    assert reasons(ready)[BIG.key] == "pool ec2-on-demand has no capacity for g.big now"
    known = {entry.estimate.offer.key: entry.availability for entry in shown.ranked}
    assert known[BIG.key] == "workers online: 2, runs waiting: 0, capacity: none now"
    assert known[LOCAL.key] == "workers online: 1, runs waiting: 3, capacity: unknown"
    assert {entry.availability for entry in ranking().ranked} == {"unknown"}
    nothing_set_up = ranking(pools={"local": PoolState(1)}, only_ready=True)
    assert order(nothing_set_up) == [LOCAL.key]


def test_waiting_in_a_queue_counts_as_time() -> None:
    pools = {offer.pool: PoolState(1) for offer in ALL} | {"ec2-on-demand": PoolState(1, waiting_seconds=36_000)}
    assert order(ranking(Preferences(optimize_for="time"), pools=pools))[0] != BIG.key


def test_a_long_run_on_demand_gets_the_reservation_in_figures() -> None:
    found = recommend(
        one_step(), [ON_DEMAND], Preferences(), (), {ON_DEMAND.key: Speed.within(50 * 3600, 1.2, "probe", "test")}
    )
    assert "a one-year reservation of g.small" in found.advice[0]
    assert "more than 5,519 hours a year" in found.advice[0]
    assert ranking().advice == ()


def test_when_nothing_fits_the_reasons_are_told() -> None:
    found = ranking(Preferences(max_cost_usd=0.01, pools=("ec2-spot", "modal")))
    assert found.best is None
    sentence = why_nothing_fits(found)
    assert sentence.startswith("no offer fits; 2 of 5: costs $0.57 at least, above max_cost_usd = $0.01")
    assert "pool local is not among those allowed" in sentence


def test_the_same_question_has_the_same_answer_in_any_order() -> None:
    forward = recommend(one_step(), ALL, Preferences())
    backward = recommend(one_step(), tuple(reversed(ALL)), Preferences())
    assert order(forward) == order(backward)


def test_an_unknown_wish_is_refused() -> None:
    with pytest.raises(ValidationError):
        Preferences(optimise_for="cost")  # type: ignore[call-arg]


def test_an_offer_without_a_known_speed_is_left_out() -> None:
    unknown = offer_like(SPOT, peak_tflops_bf16=None)
    found = recommend(one_step(), [unknown], Preferences())
    assert "nothing is known about its speed" in reasons(found)[unknown.key]


def test_gpus_that_would_stand_idle_are_named_before_they_are_paid_for() -> None:
    needs = needs_of(TrainConfig(gradient_accumulation_steps=40, max_iters=100, warmup_iters=0), 65)
    six, eight = offer_like(ON_DEMAND, instance="g.six", gpus=6), offer_like(ON_DEMAND, instance="g.eight", gpus=8)
    found = {entry.estimate.offer.key: entry for entry in recommend(needs, [six, eight], Preferences()).ranked}
    idle = found[six.key].idle_gpus
    assert idle is not None
    assert idle.startswith("uses 5 of 6 GPUs and pays for all, since gradient_accumulation_steps = 40")
    assert "36 or 42 would use all, with another batch size and thus other training" in idle
    assert idle in found[six.key].cons
    assert found[eight.key].idle_gpus is None
    (place,) = placements(recommend(needs, [six], Preferences()))
    assert idle in place.reason, "the log line of the launch says it, too"


def test_several_machines_share_the_rows_of_a_step() -> None:
    """As the attempt does it: one micro-batch of 12 rows keeps 3 of 4 GPUs of each of 2 machines busy."""
    needs, four = one_step(), offer_like(ON_DEMAND, instance="g.four", gpus=4)
    (entry,) = recommend(needs, [four], Preferences(nodes=2)).ranked
    assert entry.idle_gpus is not None
    assert entry.idle_gpus.startswith(
        "uses 3 of 4 GPUs of each of 2 machines and pays for all, since gradient_accumulation_steps = 1 times "
        "batch_size = 12 is not a multiple of 8; 8 would use all"
    )
