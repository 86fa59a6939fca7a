"""A search space is judged before the first trial, and what is wrong is named with its mend."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from crucible.config import TrainConfig
from crucible.errors import ConfigError
from crucible.sweeps.kinds import trial_config
from crucible.sweeps.space import Space
from crucible.tune_config import MOST_TRIALS


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "space is empty.*learning_rate"),
        ("learning_rate: [", "not valid YAML"),
        ("learning_rate: [2026-02-30]", "not valid YAML.*day is out of range"),
        ("[1, 2]", "must be `setting: values`"),
        ({"learning_rates": [1e-3]}, "'learning_rates' is not a known setting; did you mean learning_rate"),
        ({"threads": [1, 2]}, "'threads' does not change what is learned"),
        ({"max_iters": [100, 200]}, "'max_iters' is the budget"),
        ({"n_layer": []}, r"n_layer = \[\] offers nothing"),
        ({"n_layer": 4}, r"n_layer = 4 is a single value.*\[4\]"),
        ({"n_layer": [2, 2]}, "n_layer lists 2 twice"),
        ({"n_layer": [0, 2]}, "n_layer = 0 is not valid; it must be greater than or equal to 1"),
        ({"learning_rate": {"loguniforn": [1e-4, 1e-3]}}, "did you mean loguniform"),
        ({"learning_rate": {"loguniform": [1e-3, 1e-4]}}, r"has its bounds reversed; write \[0.0001, 0.001\]"),
        ({"min_lr": {"loguniform": [0, 1e-4]}}, "must begin above 0"),
        ({"dropout": {"uniform": [0.1]}}, r"must have two ends: \{uniform: \[low, high\]\}"),
        ({"dropout": {"uniform": [0.1, 1.5]}}, "dropout = 1.5 is not valid"),
        ({"learning_rate": {"int": [1, 2]}}, "learning_rate is no whole number"),
        ({"n_layer": {"uniform": [1, 4]}}, r"n_layer is a whole number; write \{int: \[1, 4\]\}"),
        ({"n_layer": [1, 2], "n_embd": {"choice": [8], "when": {"n_layers": 2}}}, "did you mean n_layer"),
        ({"n_embd": {"choice": [8], "when": {"n_layer": 2}}}, "'n_layer' is not in the space; add n_layer"),
        ({"n_layer": [1, 2], "n_embd": {"choice": [8], "when": {"n_layer": 3}}}, "n_layer is never 3; it may be 1, 2"),
        ({"n_layer": {"int": [1, 3]}, "n_embd": {"choice": [8], "when": {"n_layer": 2}}}, "n_layer is a range"),
        (
            {"n_layer": {"choice": [1], "when": {"n_embd": 8}}, "n_embd": {"choice": [8], "when": {"n_layer": 1}}},
            "wait for each other",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_mend(given: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Space.parse(given)


@pytest.mark.parametrize("path", ["\ud800", "a\0b"])
def test_a_text_that_no_path_can_be_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"space_file '.*' cannot be read") as refused:
        Space.from_file(path)
    str(refused.value).encode()


def test_yaml_json_and_mappings_are_read_alike(tmp_path: Path) -> None:
    space = Space.parse({"learning_rate": {"loguniform": [0.0001, 0.001]}, "n_embd": [32, 64]})
    assert Space.parse("learning_rate: {loguniform: [1e-4, 1e-3]}\nn_embd: [32, 64]\n") == space
    assert Space.parse('{"learning_rate": {"loguniform": [1e-4, 1e-3]}, "n_embd": {"choice": [32, 64]}}') == space
    assert Space.parse(space.as_json()) == space
    (tmp_path / "space.yaml").write_text("n_embd: [32, 64]\nlearning_rate: {loguniform: [1e-4, 1e-3]}\n")
    assert Space.from_file(tmp_path / "space.yaml").as_json() == space.as_json()
    with pytest.raises(ConfigError, match=r"space_file .* cannot be read: No such file"):
        Space.from_file(tmp_path / "nothing.yaml")


def test_conditions_leave_settings_out() -> None:
    space = Space.parse({"warmup_iters": {"choice": [5, 10], "when": {"decay_lr": True}}, "decay_lr": [True, False]})
    assert space.grid() == [
        {"decay_lr": True, "warmup_iters": 5},
        {"decay_lr": True, "warmup_iters": 10},
        {"decay_lr": False},
    ]


def test_a_grid_needs_values_that_can_be_listed() -> None:
    with pytest.raises(ConfigError, match=r"dropout .* has no end of values"):
        Space.parse({"dropout": {"uniform": [0, 0.5]}}).grid()
    assert len(Space.parse({"n_layer": {"int": [1, 4]}, "bias": [True, False]}).grid()) == 8
    with pytest.raises(ConfigError, match=f"more than {MOST_TRIALS:,} points"):
        Space.parse({"seed": {"int": [1, 200]}, "n_embd": {"int": [1, 200]}}).grid()


def test_combinations_that_cannot_be_trained_are_refused_before_the_first_trial() -> None:
    base = TrainConfig.preset("debug")
    valid = partial(trial_config, base)
    Space.parse({"n_embd": [32, 64], "n_head": [2, 4]}).require_valid_trials(valid, "grid")
    with pytest.raises(ConfigError, match=r"n_embd = 32, n_head = 3 is no valid configuration.*not a multiple"):
        Space.parse({"n_embd": [32, 64], "n_head": [2, 3]}).require_valid_trials(valid, "grid")
    with pytest.raises(ConfigError, match=r"learning_rate = 1e-05 is no valid configuration: min_lr"):
        Space.parse({"learning_rate": {"loguniform": [1e-5, 1e-2]}}).require_valid_trials(valid, "random")
