"""Speeds and estimates: what they rest on, that the parts add up, and that the bill counts what is billed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from crucible.catalog.offers import load_catalog
from crucible.config import TrainConfig
from crucible.estimate import history
from crucible.estimate.estimate import billed_seconds, estimate
from crucible.estimate.needs import Needs, needs_of
from crucible.estimate.ranking import Preferences, recommend
from crucible.estimate.speed import Speed, gpus_used, modelled_seconds_per_step, speed_on, speed_record
from crucible.intervals import checkpoint_interval_seconds
from crucible.store import store_at
from tests.catalog.offers import BIG, LOCAL, MODAL, ON_DEMAND, SPOT, offer_like


def small(**changes: object) -> Needs:
    return needs_of(TrainConfig.parse({"eval_interval": 10**6, "eval_iters": 1, **changes}), 65)


def a_speed(seconds: float) -> Speed:
    return Speed.within(seconds, 1.25, "probe", "test")


def test_history_goes_before_a_probe_and_a_probe_before_guesses() -> None:
    needs, other = small(), small(n_layer=8)
    same = speed_record(needs, SPOT, 0.2, 100)
    elsewhere = speed_record(needs, MODAL, 9.0, 100)
    of_other = speed_record(other, SPOT, 0.5, 100)
    probed = a_speed(0.3)

    def source(records: list[history.SpeedRecord], probe: Speed | None = None) -> tuple[str, float]:
        speed = speed_on(SPOT, needs, records, probe)
        assert speed is not None
        return speed.source, speed.seconds_per_step

    assert source([same, elsewhere, of_other], probed) == ("history", 0.2)
    assert source([elsewhere, of_other], probed) == ("probe", 0.3)
    assert source([elsewhere, of_other])[0] == "history of other configurations"
    assert source([elsewhere])[0] == "peak"


GPT2 = TrainConfig.preset("gpt2-124m", gradient_accumulation_steps=1)


@pytest.mark.parametrize(
    ("card", "changes", "source", "fastest", "slowest"),
    [
        ("H200", {}, "measured", 0.0271, 0.0299),
        ("H200", {"gradient_accumulation_steps": 40}, "measured", 40 * 0.026, 40 * 0.030),
        ("H100", {}, "measured", 0.028, 0.031),
        ("H200", {"compile": False}, "peak", 0.0, 1.0),
        ("H200", {"dtype": "float32"}, "peak", 0.0, 1.0),
        ("L4", {}, "peak", 0.0, 1.0),
    ],
)
def test_a_measured_card_is_not_guessed_from_its_peak(
    card: str, changes: dict[str, object], source: str, fastest: float, slowest: float
) -> None:
    offer = next(offer for offer in load_catalog() if offer.key == f"modal/{card}")
    needs = needs_of(GPT2.with_overrides(changes), 50257)
    speed = speed_on(offer, needs, [])
    assert speed is not None
    assert speed.source == source
    assert fastest < speed.seconds_per_step < slowest
    if source == "measured":
        assert "27.1 to 29.9 ms for 12,288 tokens on one H200" in speed.detail
        assert speed.low_seconds_per_step < fastest
        found = recommend(needs, [offer], Preferences()).ranked
        assert not any("guessed" in con for entry in found for con in entry.cons)


def test_other_configurations_correct_the_hardware_model() -> None:
    needs = small()
    guess = modelled_seconds_per_step(needs, SPOT, "bfloat16")
    assert guess is not None
    # Every other run took three times what the model said.
    records = [
        speed_record(other, SPOT, 3 * (modelled_seconds_per_step(other, SPOT, "bfloat16") or 0), 10)
        for other in (small(n_layer=8), small(n_embd=256))
    ]
    corrected = speed_on(SPOT, needs, records)
    assert corrected is not None
    assert corrected.seconds_per_step == pytest.approx(3 * guess)


def test_a_busy_machine_does_not_change_what_history_says() -> None:
    # The measured peak of one's own CPUs differs from call to call; the prediction from a past run must not.
    records = [speed_record(small(n_layer=8), LOCAL, 0.4, 10)]
    quiet = speed_on(offer_like(LOCAL, peak_tflops_fp32=0.2), small(), records)
    busy = speed_on(offer_like(LOCAL, peak_tflops_fp32=0.05), small(), records)
    assert quiet == busy


def test_nothing_known_is_no_speed() -> None:
    assert speed_on(offer_like(SPOT, peak_tflops_bf16=None), small(), []) is None


def test_the_model_grows_with_the_work_and_shrinks_with_the_hardware() -> None:
    def seconds(needs: Needs, offer: object) -> float:
        value = modelled_seconds_per_step(needs, offer, "bfloat16")  # type: ignore[arg-type]
        assert value is not None
        return value

    assert seconds(small(n_layer=8), SPOT) > 1.5 * seconds(small(), SPOT)
    assert seconds(small(batch_size=48), SPOT) > seconds(small(), SPOT)
    assert seconds(small(n_embd=768, n_head=12), BIG) < 0.5 * seconds(small(n_embd=768, n_head=12), SPOT)
    four = offer_like(SPOT, gpus=4)
    accumulating = small(gradient_accumulation_steps=8)
    assert seconds(accumulating, four) == pytest.approx(seconds(accumulating, SPOT) / 3.6, rel=0.05)
    assert gpus_used(small(gradient_accumulation_steps=6), four) == 3
    assert seconds(small(), four) == seconds(small(), SPOT), "one micro-batch cannot be shared"


def test_on_demand_time_is_the_sum_of_its_parts() -> None:
    needs = small(max_iters=10_000)
    found = estimate(needs, ON_DEMAND, a_speed(1.0))
    parts = found.breakdown
    assert parts.training == 10_000
    assert parts.interruptions == found.interruptions == 0
    assert parts.startup == pytest.approx(240 + 15)
    assert found.hours.likely * 3600 == pytest.approx(
        parts.startup + parts.training + parts.evaluation + parts.saves, rel=1e-9
    )
    assert found.usd.likely == pytest.approx(math.ceil(found.hours.likely * 3600) / 3600 * 1.5)
    assert found.hours.low < found.hours.likely < found.hours.high
    assert found.usd.low < found.usd.likely < found.usd.high


def test_spot_pays_for_its_interruptions_in_time_and_still_saves_money() -> None:
    needs = small(max_iters=40_000)
    spot, steady = estimate(needs, SPOT, a_speed(1.0)), estimate(needs, ON_DEMAND, a_speed(1.0))
    assert spot.interruptions == pytest.approx(spot.hours.likely / 10, rel=0.02)
    # Each costs a restart and half an interval.
    lost = spot.interruptions * (255 + spot.checkpoint_interval_seconds / 2)
    assert spot.breakdown.interruptions == pytest.approx(lost, rel=0.05)
    assert spot.hours.likely > steady.hours.likely
    assert spot.saved_share == pytest.approx(1 - spot.usd.likely / steady.usd.likely, rel=0.01)
    assert steady.saved_share is None
    stall = 0.05 + needs.checkpoint_bytes / 2e9
    assert spot.checkpoint_interval_seconds == pytest.approx(checkpoint_interval_seconds(stall, 36_000), rel=0.01)


def test_a_lifetime_costs_a_restart_each_time_it_ends() -> None:
    needs = small(max_iters=200_000)
    endless, limited = offer_like(MODAL, lifetime_hours=None), MODAL
    more = estimate(needs, limited, a_speed(1.0)).interruptions - estimate(needs, endless, a_speed(1.0)).interruptions
    assert more == pytest.approx(2)  # 55 hours in pieces of 24


def test_waiting_takes_time_and_no_money() -> None:
    now, later = (estimate(small(), ON_DEMAND, a_speed(1.0), waiting) for waiting in (0.0, 3600.0))
    assert later.hours.likely == pytest.approx(now.hours.likely + 1)
    assert later.usd == now.usd


def test_the_bill_has_a_minimum_per_start_and_is_rounded_up() -> None:
    offer = offer_like(ON_DEMAND, minimum_seconds=60, granularity_seconds=1)
    assert billed_seconds(20, 0, offer) == 60
    assert billed_seconds(90.2, 0, offer) == 91
    assert billed_seconds(90, 2, offer) == 180, "three starts of 30 s each"
    assert billed_seconds(3601, 0, offer_like(offer, granularity_seconds=3600)) == 7200


def test_speeds_are_remembered_per_offer_and_the_oldest_forgotten(tmp_path: Path) -> None:
    store = store_at(str(tmp_path))
    records = [speed_record(small(), offer, 0.1 * (count + 1), 10) for offer in (SPOT, MODAL) for count in range(2)]
    for record in records:
        history.remember_speed(store, record)
    assert sorted(found.model_dump_json() for found in history.speeds(store)) == sorted(
        record.model_dump_json() for record in records
    )
