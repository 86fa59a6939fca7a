"""The page of a sweep, from its records alone."""

from __future__ import annotations

import re

import pytest

from crucible.jobs.status import JobState
from crucible.reports.sweep import sweep_report
from crucible.reports.sweep_picture import sweep_picture
from crucible.store import Store
from crucible.sweeps import Space, Sweep, SweepStatus, Trial
from tests.cli.test_sweeps import measured
from tests.sweeps.carry_out import new_sweep

PNG = b"\x89PNG"


@pytest.fixture
def sweep(store: Store) -> Sweep:
    made = new_sweep(store, "rates", trials=3)
    measured(made, 1, 0.004, {2: 3.0})
    measured(made, 2, 0.002, {2: 2.5, 4: 2.25, 8: 2.125})
    measured(made, 3, 0.008, {2: float("nan")})
    return made


def test_the_page_has_the_leaderboard_the_best_config_and_what_it_cost(sweep: Sweep) -> None:
    sweep.set_status(SweepStatus(state=JobState.COMPLETED, reason="3 trials"))
    page = sweep_report(sweep, sweep.ranked())
    assert "**Completed** · 3 of 3 trials, 1 failed · 12 steps" in page
    assert "$1.25" in page
    assert "learning_rate: 0.002\n" in page
    lines = [line for line in page.splitlines() if "`rates-000" in line and line.startswith("|")]
    for line, state in zip(lines, ["complete", "stopped early", "failed: the validation loss"], strict=True):
        assert state in line
    assert "| rank | trial | settings | val loss | state |" in page, "as many columns for any number of settings"
    assert re.search(
        r"\| \*\*1\*\* \| trial 2<br>`rates-0002` \| .*learning_rate 0\.002.* \| \*\*2\.1250\*\*<br>step 8 \|", page
    )
    assert "## Best\n" in page
    assert "data:image/png;base64," in page


def test_a_sweep_that_measured_nothing_has_a_page_without_a_picture(store: Store) -> None:
    page = sweep_report(new_sweep(store, "new"), [])
    assert "0 of 4 trials" in page
    assert "data:image" not in page


def test_the_picture_takes_settings_that_some_trials_do_not_have() -> None:
    space = Space.parse(
        {
            "decay_lr": [True, False],
            "warmup_iters": {"choice": [5, 10], "when": {"decay_lr": True}},
            "n_layer": [2],
            "dropout": {"uniform": [0.1, 0.1]},
        }
    )
    values = {"n_layer": 2, "dropout": 0.1}
    trials = [
        Trial(1, {"decay_lr": True, "warmup_iters": 5, **values}, "a-0001", {2: 1.5, 4: 1.0}),
        Trial(2, {"decay_lr": False, **values}, "a-0002", {2: 1.5}),
        Trial(3, {"decay_lr": False, **values}, "a-0003", failure="out of memory"),
    ]
    assert sweep_picture(trials, space.dimensions, {}).startswith(PNG)
    assert sweep_picture(trials[2:], space.dimensions, {}).startswith(PNG)
