"""`crucible simulate`: the rows it prints, what it refuses, and the figures on the public traces."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from crucible.cli.main import build_app
from crucible.errors import ConfigError, CrucibleError, DataError
from crucible.placement.simulate import load_traces, simulate, summarise
from tests.placement.traces import PUBLIC_TRACES, heavy_tailed, write_trace

POLICIES = ["on-demand", "greedy", "uniform-progress", "crucible", "omniscient"]
# The zones whose spot runs and outages the two laws of the policy were fitted to; all others are held out.
FITTED_ZONES = ("us-east-1a", "us-east-1d", "us-east-2a", "us-west-2a", "us-west-2c")


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    write_trace(tmp_path / "traces" / "a.json", heavy_tailed(600, 30, 15, seed=1))
    write_trace(tmp_path / "traces" / "zone" / "b.json", heavy_tailed(600, 10, 30, seed=2))
    return tmp_path / "traces"


def test_rows_for_every_trace_policy_and_deadline(traces: Path, tmp_path: Path) -> None:
    plot = tmp_path / "policies.png"
    arguments = ["simulate", "--traces", str(traces), "--job-hours", "4", "--deadline-ratios", "1.1,1.5"]
    result = CliRunner().invoke(build_app(), [*arguments, "--json", "--plot", str(plot)], catch_exceptions=False)
    rows = json.loads(result.stdout)
    assert {tuple(row) for row in rows} == {("trace", "policy", "deadline_ratio", "cost", "missed")}
    assert [(row["deadline_ratio"], row["policy"], row["trace"]) for row in rows] == [
        (ratio, policy, trace) for ratio in (1.1, 1.5) for policy in POLICIES for trace in ("a", "zone/b")
    ]
    assert all(row["missed"] == 0 for row in rows)
    assert all(row["cost"] == pytest.approx(1.0) for row in rows if row["policy"] == "on-demand")
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_table_names_every_policy(traces: Path) -> None:
    arguments = ["simulate", "--traces", str(traces), "--job-hours", "2", "--deadline-ratios", "1.5"]
    result = CliRunner().invoke(build_app(), arguments, catch_exceptions=False)
    assert all(policy in result.stdout for policy in POLICIES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deadline_ratios": [1.0]}, "1.0: not even on-demand"),
        ({"job_hours": 100}, "shorter than the deadline"),
        ({"job_hours": -1}, "job_hours is -1"),
        ({"start_every_hours": 0}, "start_every_hours is 0"),
        ({"on_demand_ratio": 0}, "on_demand_ratio is 0"),
        ({"changeover_hours": -0.1}, "changeover_seconds is -360"),
    ],
)
def test_nonsense_is_refused(traces: Path, changes: dict[str, object], message: str) -> None:
    arguments = {"job_hours": 4, "on_demand_ratio": 3, "changeover_hours": 0.1, "deadline_ratios": [1.5]} | changes
    with pytest.raises(ConfigError, match=message):
        simulate(load_traces(traces), **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["[1, 0]", '{"metadata": {}, "data": []}', "not json"])
def test_a_file_that_is_no_trace_is_named(traces: Path, content: str) -> None:
    (traces / "odd.json").write_text(content)
    with pytest.raises(DataError, match=r"odd\.json is not a spot trace"):
        load_traces(traces)


def test_an_empty_folder_and_unreadable_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no spot trace"):
        load_traces(tmp_path)
    write_trace(tmp_path / "a.json", heavy_tailed(600, 30, 15, seed=1))
    arguments = ["simulate", "--traces", str(tmp_path), "--deadline-ratios", "soon"]
    with pytest.raises(CrucibleError, match="numbers separated by commas"):
        CliRunner().invoke(build_app(), arguments, catch_exceptions=False)


@pytest.mark.skipif(not PUBLIC_TRACES.is_dir(), reason="SPOT_TRACES does not name a checkout of the public spot traces")
def test_figures_on_the_public_traces_hold_on_the_zones_held_out() -> None:
    rows = simulate(load_traces(PUBLIC_TRACES), 24, 3, 0.1, [1.1, 1.3, 1.6], start_every_hours=19)
    held_out = [row for row in rows if not row.trace.startswith(FITTED_ZONES)]
    for zones in (rows, held_out):
        for ratio in (1.1, 1.3, 1.6):
            here = {line.policy: line for line in summarise(zones) if line.deadline_ratio == ratio}
            assert here["crucible"].missed == 0
            assert here["crucible"].cost < min(here["uniform-progress"].cost, here["greedy"].cost)
            assert here["crucible"].excess <= 0.75 * here["uniform-progress"].excess
    assert np.isclose([row.cost for row in rows if row.policy == "on-demand"], 1.0).all()
