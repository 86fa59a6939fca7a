"""Sweeps on a real Prefect server: what people see, what a kill changes (nothing), what stops and goes on."""

from __future__ import annotations

import contextvars
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

import crucible
from crucible.errors import ConfigError
from crucible.jobs.records import EndReason
from crucible.jobs.status import JobState
from crucible.store import Store, store_at
from crucible.sweeps import Sweep, SweepLimits
from crucible.sweeps.leaderboard import digest
from flows.parameters import TrainOverrides
from flows.tune import tune_nanogpt
from tasks.ending import Ended
from tests.conftest import PrefectServer
from tests.flows.staged import eventually
from tests.sweeps.carry_out import LADDER, carry_on, carry_out, new_sweep

PROJECT = Path(__file__).parents[2]
DATASET = {"source": "python-stdlib", "max_bytes": 20_000}


def leaderboard(sweep: Sweep) -> str:
    return digest(sweep.leaderboard())


@pytest.fixture(scope="module")
def undisturbed(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A sweep of four trials that nothing disturbs."""
    store = store_at(tmp_path_factory.mktemp("undisturbed").as_uri())
    sweep = new_sweep(store, "undisturbed")
    with temporary_settings({PREFECT_API_URL: prefect_server.api_url}):
        carry_out(store=store.uri, sweep="undisturbed")
    return sweep


@contextmanager
def in_a_process(server: PrefectServer, sweep: Sweep) -> Iterator[subprocess.Popen[bytes]]:
    """The sweep, in a process that may be killed."""
    command = [sys.executable, "-m", "tests.sweeps.carry_out", sweep.root.uri, sweep.sweep_id]
    process = subprocess.Popen(command, cwd=PROJECT, env=server.env)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def in_a_thread(sweep: Sweep, usd_per_hour: float = 0.0) -> Iterator[Future[None]]:
    """The sweep, beside the test; over at the end of the `with` block."""
    settings = contextvars.copy_context()
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(
            settings.run, carry_out, store=sweep.root.uri, sweep=sweep.sweep_id, usd_per_hour=usd_per_hour
        )


def test_tune_searches_trains_the_best_to_the_end_and_shows_it(prefect_api: str, store: Store) -> None:
    state = tune_nanogpt(
        space={"n_embd": [8, 16], "learning_rate": [1e-3, 1e-2]},
        sampler="grid",
        max_trials=2,
        schedule="halving",
        min_steps=4,
        reduction_factor=3,
        parallelism=2,
        preset="debug",
        config=TrainOverrides(max_iters=12, warmup_iters=2, n_layer=1),
        dataset=DATASET,
        sweep="shown",
        store=store.uri,
        return_state=True,
    )
    assert state.type.value == "COMPLETED", state.message

    table = crucible.sweep("shown", store.uri).trials()
    assert list(table["state"]) == ["complete", "stopped early"]
    assert list(table["step"]) == [12, 4]
    assert set(table.columns) >= {"n_embd", "learning_rate", "val_loss", "cost_usd"}
    best = Sweep(store, "shown").best()
    assert best is not None
    evaluation = Sweep(store, "shown").job(best.number).store.read_json("evaluation.json")
    assert evaluation["val_loss"] == pytest.approx(best.loss, rel=1e-6)
    assert store.exists(f"{evaluation['model']}/README.md")
    with get_client(sync_client=True) as client:
        artifacts = {artifact.key: artifact for artifact in client.read_artifacts()}
        names = {run.name for run in client.read_task_runs()}
    shown = json.loads(str(artifacts["leaderboard-shown"].data))
    assert [row["trial"] for row in shown] == list(table["trial"])
    assert shown[0]["val_loss"] == pytest.approx(best.loss, rel=1e-4)
    assert len(str(shown[0]["val_loss"])) <= 6, "so few digits that the columns after it are on the screen"
    page = str(artifacts["sweep-shown"].data)
    assert "data:image/png;base64," in page
    assert f"n_embd: {best.values['n_embd']}" in page
    assert "bits per byte" in page
    assert f"trial {best.number} to step 12" in names

    again = tune_nanogpt(sweep="shown", store=store.uri, run_evaluation=False, return_state=True)
    assert again.type.value == "COMPLETED"
    assert [len(Sweep(store, "shown").job(number).attempts()) for number in table["trial"]] == list(table["attempts"])


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"space": {"n_embed": [8]}}, "n_embed.* did you mean n_embd"),
        ({"space": {"block_size": [32, 100_000]}}, "block_size"),
        ({}, "space is empty, and there is no sweep"),
    ],
)
def test_what_is_wrong_is_told_before_the_first_trial(
    prefect_api: str, store: Store, parameters: dict[str, Any], words: str
) -> None:
    with pytest.raises(Ended, match=words) as refused:
        tune_nanogpt(preset="debug", dataset=DATASET, sweep="wrong", store=store.uri, **parameters)
    assert refused.value.state.is_failed()
    assert not store.list("jobs")


def test_a_sweep_is_the_same_after_kills(
    prefect_server: PrefectServer, prefect_api: str, store: Store, undisturbed: Sweep, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    hold.mkdir()
    sweep = new_sweep(store, "killed", options={"hold": str(hold)})
    with in_a_process(prefect_server, sweep) as process:
        for trial in (1, 2):
            eventually(lambda trial=trial: (hold / f"{trial}.pid").exists(), f"trial {trial}")
        first = int((hold / "1.pid").read_text())
        (hold / "1.pid").unlink()
        psutil.Process(first).kill()
        eventually(lambda: (hold / "1.pid").exists(), "another attempt at trial 1")
        process.kill()
    for trial in range(1, 5):
        (hold / f"{trial}.go").touch()
    carry_out(store=store.uri, sweep="killed")

    assert leaderboard(sweep) == leaderboard(undisturbed)
    ends = [outcome.end_reason for attempt in sweep.job(1).attempts() if (outcome := attempt.read_outcome())]
    assert ends[:2] == [EndReason.KILLED, EndReason.LOST]
    assert sum(trial.steps for trial in sweep.read_trials()) == sum(trial.steps for trial in undisturbed.read_trials())


def test_failures_are_marked_and_stop_nothing(prefect_api: str, store: Store) -> None:
    sweep = new_sweep(store, "failing", trials=6, options={"fail": {"2": "nan", "3": "exit", "5": "kill"}})
    carry_out(store=store.uri, sweep="failing")

    assert sweep.read_status() is not None
    assert sweep.read_status().state is JobState.COMPLETED
    failures = {trial.number: trial.failure for trial in sweep.read_trials() if trial.failure}
    assert set(failures) == {2, 3, 5}
    assert "validation loss at step 2 is no number" in failures[2]
    assert "out of memory" in failures[3]
    assert "SIGKILL" in failures[5]
    best = sweep.best()
    assert best is not None
    assert best.step == LADDER[-1]


def test_a_budget_pauses_with_everything_saved_and_goes_on_exactly_when_raised(
    prefect_api: str, store: Store, undisturbed: Sweep, tmp_path: Path
) -> None:
    sweep = new_sweep(store, "poor", options={"hold": str(tmp_path)})
    with in_a_thread(sweep, usd_per_hour=36.0):
        for trial in (1, 2):
            eventually(lambda trial=trial: (tmp_path / f"{trial}.pid").exists(), f"trial {trial}")
        sweep.set_limits(SweepLimits(max_trials=4, max_cost_usd=0.001))
    assert sweep.read_status() is not None
    assert sweep.read_status().state is JobState.BUDGET_STOP
    assert "$0.001" in sweep.read_status().reason
    stopped = [sweep.job(number).attempt(1).read_outcome() for number in (1, 2)]
    assert all(outcome and outcome.end_reason is EndReason.BUDGET for outcome in stopped)
    assert all(outcome and outcome.committed_step == outcome.step == 2 for outcome in stopped)

    carry_out(store=store.uri, sweep="poor")
    assert sweep.read_status().state is JobState.BUDGET_STOP
    assert not sweep.job(1).attempt(2).read_launch()

    for trial in range(1, 5):
        (tmp_path / f"{trial}.go").touch()
    sweep.set_limits(SweepLimits(max_trials=4, max_cost_usd=1000.0))
    carry_out(store=store.uri, sweep="poor")
    assert sweep.read_status().state is JobState.COMPLETED
    assert leaderboard(sweep) == leaderboard(undisturbed)


def test_a_sweep_that_is_cancelled_without_a_signal_saves_and_can_go_on(
    prefect_api: str, store: Store, undisturbed: Sweep, tmp_path: Path
) -> None:
    sweep = new_sweep(store, "cancelled", options={"hold": str(tmp_path)})

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=8), persist_result=False)
    def cancelled_while_two_run() -> None:
        carry_on(sweep, cancelled=lambda: all((tmp_path / f"{trial}.pid").exists() for trial in (1, 2)))

    cancelled_while_two_run()
    assert sweep.read_status() is not None
    assert sweep.read_status().state is JobState.CANCELLED
    assert sweep.read_status().reason.startswith("cancelled by a person; ")
    stopped = [sweep.job(number).attempt(1).read_outcome() for number in (1, 2)]
    assert all(outcome and outcome.end_reason is EndReason.CANCELLED for outcome in stopped)
    assert all(outcome and outcome.committed_step == outcome.step == 2 for outcome in stopped)

    for trial in range(1, 5):
        (tmp_path / f"{trial}.go").touch()
    carry_out(store=store.uri, sweep="cancelled")
    assert sweep.read_status().state is JobState.COMPLETED
    assert leaderboard(sweep) == leaderboard(undisturbed)


def test_more_trials_are_taken_up_while_a_sweep_runs(
    prefect_api: str, store: Store, undisturbed: Sweep, tmp_path: Path
) -> None:
    sweep = new_sweep(store, "few", trials=2, options={"hold": str(tmp_path)})
    with in_a_thread(sweep):
        for trial in (1, 2):
            eventually(lambda trial=trial: (tmp_path / f"{trial}.pid").exists(), f"trial {trial}")
        sweep.set_limits(SweepLimits(max_trials=4))
        for trial in range(1, 5):
            (tmp_path / f"{trial}.go").touch()
    assert sweep.read_status() is not None
    assert sweep.read_status().state is JobState.COMPLETED
    assert leaderboard(sweep) == leaderboard(undisturbed)


def test_another_spec_under_the_same_name_is_refused(store: Store) -> None:
    new_sweep(store, "taken")
    assert new_sweep(store, "taken").read_spec().seed == 0
    with pytest.raises(ConfigError, match=r"'taken' already exists with another seed \(0, not 1\)"):
        new_sweep(store, "taken", seed=1)
