"""Deadline policies: never late, blind to the future, and cheaper than what they are meant to beat."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible.errors import ConfigError
from crucible.placement.lookahead import lookahead
from crucible.placement.omniscient import least_cost
from crucible.placement.policies import (
    ON_DEMAND,
    SPOT,
    WAIT,
    Choices,
    DeadlineJob,
    Policy,
    Rule,
    Seen,
    decide_once,
    uniform_progress,
)
from crucible.placement.simulate import POLICIES, Outcome, run_policy
from tests.placement.traces import heavy_tailed

HOUR = 3600.0
TICK = 300.0


def a_job(work_hours: float = 6, ratio: float = 1.3, changeover_hours: float = 0.1, price: float = 3.0) -> DeadlineJob:
    return DeadlineJob(work_hours * HOUR, work_hours * ratio * HOUR, changeover_hours * HOUR, price, TICK)


def up(pattern: str) -> np.ndarray:
    """'##..' is two ticks with spot and two without; one run."""
    return np.array([[mark == "#" for mark in pattern]])


def scripted(choices: list[int]) -> Rule:
    """A rule that plays a fixed list of choices, then on-demand."""
    script = iter(choices)
    return lambda seen: np.full(seen.running.shape, next(script, ON_DEMAND), dtype=np.int8)


def test_the_bill_counts_changeovers_waits_and_the_part_of_the_last_tick() -> None:
    job = DeadlineJob(10 * TICK, 30 * TICK, 1.5 * TICK, 4.0, TICK)
    # Spot for 4 ticks (2.5 of work), gone; one tick of waiting; on-demand: 1.5 to start and 7.5 of work.
    outcome = run_policy(up("####" + "." * 26), job, scripted([SPOT] * 4 + [WAIT]))
    assert outcome.cost[0] == pytest.approx((4 + 4.0 * 9) * TICK)
    assert outcome.finish_seconds[0] == pytest.approx((4 + 1 + 9) * TICK)
    assert outcome.starts[0] == 2


def test_a_changeover_cut_short_is_paid_for_nothing() -> None:
    job = DeadlineJob(4 * TICK, 30 * TICK, 2 * TICK, 3.0, TICK)
    outcome = run_policy(up("#." + "#" * 28), job, scripted([SPOT, WAIT] + [SPOT] * 9))
    assert outcome.cost[0] == pytest.approx((1 + 2 + 4) * TICK)


@given(
    seed=st.integers(0, 10_000),
    ratio=st.sampled_from([1.02, 1.05, 1.1, 1.5, 3.0]),
    changeover=st.sampled_from([0.0, 0.01, 0.1, 0.11]),
    mean_up=st.sampled_from([1, 3, 40]),
    mean_down=st.sampled_from([1, 10]),
)
@settings(max_examples=20, deadline=None)
def test_no_feasible_deadline_is_ever_missed(
    seed: int, ratio: float, changeover: float, mean_up: int, mean_down: int
) -> None:
    job = a_job(ratio=ratio, changeover_hours=changeover)
    ticks = int(np.ceil(job.deadline_seconds / TICK))
    spot = np.array([heavy_tailed(ticks, mean_up, mean_down, seed + run) for run in range(8)])
    for name, policy in POLICIES.items():
        late = run_policy(spot, job, policy(job)).finish_seconds > job.deadline_seconds + 1e-6
        assert not late.any(), name


def test_an_impossible_deadline_is_late_by_as_little_as_can_be() -> None:
    job = a_job(ratio=1.0)
    for policy in POLICIES.values():
        outcome = run_policy(np.ones((1, 72), dtype=np.bool_), job, policy(job))
        assert outcome.finish_seconds[0] == pytest.approx(job.deadline_seconds + job.changeover_seconds)


@pytest.mark.parametrize("name", list(POLICIES))
def test_a_policy_sees_only_the_past(name: str) -> None:
    job = a_job(ratio=1.4)
    spot = heavy_tailed(101, 12, 8, seed=3)
    other = spot.copy()
    other[60:] = ~other[60:]

    def choices(available: np.ndarray) -> list[int]:
        made: list[int] = []
        rule = POLICIES[name](job)

        def recording(seen: Seen) -> Choices:
            made.append(int(rule(seen)[0]))
            return np.array(made[-1:], dtype=np.int8)

        run_policy(available[None, :], job, recording)
        return made

    assert choices(spot)[:60] == choices(other)[:60]


def test_uniform_progress_follows_its_rules() -> None:
    job = a_job(work_hours=10, ratio=2.0, changeover_hours=0.2)
    rule = uniform_progress(job)

    def choice(hours: float, done: float, running: int, available: bool) -> int:
        return decide_once(rule, hours * HOUR, done * HOUR, running, available, 0.0)

    assert choice(4, 2.1, WAIT, False) == WAIT, "ahead and idle: wait"
    assert choice(4, 1.9, WAIT, False) == ON_DEMAND, "behind: catch up"
    assert choice(4, 1.5, ON_DEMAND, True) == SPOT, "take risks even when behind"
    assert choice(4, 2.1, ON_DEMAND, False) == ON_DEMAND, "hysteresis: not yet ahead of ep(t + 2d)"
    assert choice(4, 2.25, ON_DEMAND, False) == WAIT, "ahead by more than 2d"
    assert choice(10.0, 0.35, WAIT, True) == ON_DEMAND, "safety net: too late to risk spot"
    assert choice(4, 2.1, SPOT, False) == WAIT, "a spot machine that is gone is no machine"


def brute_force(spot: np.ndarray, job: DeadlineJob) -> float:
    """The cheapest of all sequences of choices, played through the simulator."""
    ticks = spot.shape[1]
    plans = np.array(list(itertools.product((WAIT, SPOT, ON_DEMAND), repeat=ticks)), dtype=np.int8)

    def rule(seen: Seen) -> Choices:
        index = min(round(seen.elapsed_seconds / TICK), ticks - 1)
        return plans[:, index]

    outcome: Outcome = run_policy(np.repeat(spot, len(plans), axis=0), job, rule)
    return float(outcome.cost[outcome.finish_seconds <= job.deadline_seconds + 1e-6].min())


@pytest.mark.parametrize("seed", range(25))
def test_the_bound_is_the_cheapest_of_all_plans(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spot = rng.random((1, 9)) < 0.6
    whole = DeadlineJob(int(rng.integers(3, 7)) * TICK, 9 * TICK, TICK, 3.0, TICK)
    if whole.feasible:
        assert least_cost(spot[0], whole) == pytest.approx(brute_force(spot, whole))
    # A changeover that is no whole number of ticks: the bound may start on-demand between ticks, so it may be lower.
    broken = DeadlineJob(4 * TICK, 9 * TICK, 1.6 * TICK, 2.5, TICK)
    assert least_cost(spot[0], broken) <= brute_force(spot, broken) + 1e-6


def test_the_bound_is_infinite_where_no_plan_is_in_time() -> None:
    assert least_cost(np.ones(72, dtype=np.bool_), a_job(ratio=1.0)) == np.inf


@pytest.mark.parametrize("ratio", [1.1, 1.3, 1.6])
def test_cheaper_than_the_published_policies_on_spot_unlike_the_traces_it_was_fitted_to(ratio: float) -> None:
    job = a_job(work_hours=24, ratio=ratio)
    ticks = int(np.ceil(job.deadline_seconds / TICK))
    spot = np.array([heavy_tailed(ticks, mean_up, 25, seed) for mean_up in (15, 40) for seed in range(25)])
    cost = {name: run_policy(spot, job, policy(job)).cost.mean() for name, policy in POLICIES.items()}
    bound = float(np.mean([least_cost(run, job) for run in spot]))
    assert cost["crucible"] < cost["greedy"]
    assert cost["crucible"] - bound < 0.85 * (cost["uniform-progress"] - bound)
    assert min(cost.values()) >= bound


def test_the_less_slack_the_sooner_on_demand_and_the_longer_spot_must_prove_itself() -> None:
    rule = lookahead(a_job(work_hours=24, ratio=1.3))
    # A fresh outage with 5.2 h of slack, and with 1 h.
    assert decide_once(rule, 5 * HOUR, 3.0 * HOUR, WAIT, False, 0.0) == WAIT
    assert decide_once(rule, 15 * HOUR, 8.8 * HOUR, WAIT, False, 0.0) == ON_DEMAND
    # 0.3 h of slack pay for one move to spot: not to spot that has just come, but to spot that has lasted for 5 h.
    assert decide_once(rule, 15 * HOUR, 8.1 * HOUR, ON_DEMAND, True, 0.0) == ON_DEMAND
    assert decide_once(rule, 15 * HOUR, 8.1 * HOUR, ON_DEMAND, True, 5 * HOUR) == SPOT


@pytest.mark.parametrize(
    ("field", "value"),
    [("work_seconds", 0), ("changeover_seconds", -1), ("deadline_seconds", float("nan")), ("on_demand_ratio", 0)],
)
def test_an_impossible_job_is_refused(field: str, value: float) -> None:
    values = {"work_seconds": 1.0, "deadline_seconds": 2.0, "changeover_seconds": 0.0}
    with pytest.raises(ConfigError, match=field):
        DeadlineJob(**(values | {"on_demand_ratio": 3.0, "tick_seconds": 1.0} | {field: value}))


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_whole_range_of_jobs_can_be_planned(policy: Policy) -> None:
    for job in (a_job(work_hours=0.2, ratio=6), a_job(work_hours=200, ratio=1.05), a_job(changeover_hours=0.0)):
        rule = policy(job)
        for spot in (True, False):
            assert decide_once(rule, 0.0, 0.0, WAIT, spot, 0.0) in (WAIT, SPOT, ON_DEMAND)
