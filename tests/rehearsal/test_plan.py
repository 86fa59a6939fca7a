"""Which faults a drill strikes with, and in which order."""

from __future__ import annotations

from itertools import pairwise

import pytest

from crucible.errors import ConfigError
from crucible.rehearsal.drill.faults import Fault
from crucible.rehearsal.drill.plan import chosen, make_plan
from crucible.rehearsal.drill.stage import LOCAL_FAULTS

FAULTS = [*LOCAL_FAULTS, Fault("drought", "none to be had", lambda scene: True, comes_last=True)]
SEEDS = range(20)


@pytest.mark.parametrize("count", [1, len(FAULTS), 2 * len(FAULTS) + 3])
def test_every_fault_comes_before_any_comes_twice_and_a_seed_says_in_which_order(count: int) -> None:
    for seed in SEEDS:
        plan = make_plan(FAULTS, count, seed)
        assert plan == make_plan(FAULTS, count, seed)
        assert len({fault.name for fault in plan}) == min(count, len(FAULTS))
    assert len({tuple(fault.name for fault in make_plan(FAULTS, count, seed)) for seed in SEEDS}) > 1


def test_a_fault_that_shows_in_how_the_job_goes_on_ends_its_turn() -> None:
    faults = [fault for fault in FAULTS if not fault.before_training]  # which changes places with others
    for seed in SEEDS:
        names = [fault.name for fault in make_plan(faults, 2 * len(faults), seed)]
        assert [place for place, name in enumerate(names, start=1) if name == "drought"] == [len(faults), len(names)]


def test_no_two_attempts_in_a_row_are_left_without_a_commit() -> None:
    for seed in SEEDS:
        plan = [fault for fault in make_plan(FAULTS, 3 * len(FAULTS), seed) if fault.ends_attempt]
        early = [fault.before_training for fault in plan]
        assert not early[0]
        assert not any(first and second for first, second in pairwise(early))


def test_a_plan_has_a_fault_at_least() -> None:
    with pytest.raises(ConfigError, match="kills: 0"):
        make_plan(FAULTS, 0, 1)


def test_a_plan_of_chosen_faults_has_no_others() -> None:
    names = "pause-agent, pause-in-start,pause-supervisor"
    plan = make_plan(chosen(FAULTS, names), 9, 31)
    assert {fault.name for fault in plan} == {"pause-agent", "pause-in-start", "pause-supervisor"}
    with pytest.raises(ConfigError, match="tornado is none of this pool's: notice"):
        chosen(FAULTS, "pause-agent,tornado")
    with pytest.raises(ConfigError, match="ends an attempt in training: notice"):
        chosen(FAULTS, "pause-in-start,pause-supervisor")
