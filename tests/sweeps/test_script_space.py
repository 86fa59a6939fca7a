"""A search space over a script's own arguments and variables, judged before the first trial."""

from __future__ import annotations

import re
from typing import Any

import pytest

from crucible.errors import ConfigError
from crucible.script_config import ScriptConfig
from crucible.sweeps.search import read_script_space, rungs
from crucible.sweeps.searchable import filled
from crucible.tune_config import TuneSettings

SCRIPT = ScriptConfig(
    command=["python", "train.py", "--lr={lr}", "--warmup={warmup}", "{other}"],
    env={"WIDTH": "{width}", "MODE": "a"},
)


def space_of(space: Any, script: ScriptConfig = SCRIPT, **search: Any) -> Any:
    return read_script_space(TuneSettings(space=space, **search), "mine", script)


def test_values_take_the_place_of_their_names_and_other_braces_stay() -> None:
    space = space_of("lr: {loguniform: [1e-4, 1e-2]}\nwidth: {int: [16, 64]}\nwarmup: [true]")
    script = filled(SCRIPT, space.names, {"lr": 1e-3, "width": 32, "warmup": True})
    assert script.command == ["python", "train.py", "--lr=0.001", "--warmup=true", "{other}"]
    assert script.env == {"WIDTH": "32", "MODE": "a"}
    assert script.settings == {"lr": 1e-3, "width": 32, "warmup": True}


def test_an_argument_whose_condition_does_not_hold_is_left_out() -> None:
    space = space_of({"lr": [0.1, 0.2], "warmup": {"choice": [5, 9], "when": {"lr": 0.2}}}, sampler="grid")
    commands = [" ".join(filled(SCRIPT, space.names, values).command) for values in space.grid()]
    assert commands == [
        "python train.py --lr=0.1 {other}",
        "python train.py --lr=0.2 --warmup=5 {other}",
        "python train.py --lr=0.2 --warmup=9 {other}",
    ]
    alone = ScriptConfig(command=["train", "--lr={lr}", "--warmup", "{warmup}"])
    with pytest.raises(ConfigError, match="write it as one word, such as --warmup="):
        space_of({"lr": [0.1], "warmup": {"choice": [5], "when": {"lr": 0.1}}}, alone)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"lrr": [1]}, "'lrr' stands nowhere in the command or in env; did you mean lr?, such as command: "),
        ({"state": [1]}, "'state' is a column of the leaderboard"),
        ({"lr": [None]}, "lr = None is not valid; it must be a number, a text or a boolean"),
        ({"lr": {"uniform": ["a", "b"]}}, "lr = 'a' is no number"),
        ({"lr": {"int": [0.5, 3]}}, "lr is no whole number; use uniform or loguniform"),
        ({"lr": {"uniform": [0, float("inf")]}}, "lr = inf is not valid"),
        ({"lr": {"uniform": [0, "inf"]}}, "lr = {uniform: [0, inf]} must lie between"),
        ({"lr": {"uniform": ["nan", 1]}}, "must lie between"),
        ({"lr": {"int": [0, "inf"]}}, "must lie between"),
        ({"lr": {"uniform": [-1e308, 1e308]}}, "must lie between -1e+300 and 1e+300"),
        ({"lr": {"int": [0, 10**400]}}, "must lie between"),
        ({}, "space is empty"),
    ],
    ids=str,
)
def test_mistakes_are_named_with_their_fix(space: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        space_of(space)


def test_rungs_need_the_number_of_steps() -> None:
    assert rungs(TuneSettings(), 90) == [10, 30, 90]
    assert rungs(TuneSettings(schedule="none"), 90) == [90]
    assert rungs(TuneSettings(), None) == [1], "every trial to its end"
    with pytest.raises(ConfigError, match="min_steps = 3 needs total_steps"):
        rungs(TuneSettings(min_steps=3), None)
