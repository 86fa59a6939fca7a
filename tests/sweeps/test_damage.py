"""A damaged record of a sweep: a message that names the object; it costs its own trial, or ends the sweep."""

from __future__ import annotations

import pytest
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from typer.testing import CliRunner

from crucible.cli.main import build_app
from crucible.errors import RecordDamaged
from crucible.jobs.status import JobState
from crucible.store import Store
from tests.sweeps.carry_out import carry_on, new_sweep

DAMAGE = [b"", b'{"torn": ', b"[1, 2]", b'{"state": 7}']


def test_a_damaged_trial_is_one_failed_trial(prefect_api: str, store: Store) -> None:
    sweep = new_sweep(store, "one-damaged", trials=3)
    sweep.record_trial(1, {"learning_rate": 2e-3})
    sweep.job(1).store.write("job.json", b'{"torn": ')

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=4), persist_result=False)
    def run() -> JobState:
        return carry_on(sweep).state

    assert run() is JobState.COMPLETED
    first, *others = sweep.read_trials()
    assert first.state == "failed"
    assert "one-damaged-0001/job.json is damaged" in first.failure
    assert [bool(trial.losses) for trial in others] == [True, True]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_limits_end_the_sweep_with_a_message(prefect_api: str, store: Store, damage: bytes) -> None:
    sweep = new_sweep(store, "bad-limits", trials=3)
    sweep.store.write("limits/0001.json", damage)

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=4), persist_result=False)
    def run() -> None:
        with pytest.raises(RecordDamaged, match=r"bad-limits/limits/0001\.json is damaged.*crucible sweeps limits"):
            carry_on(sweep)

    run()


@pytest.mark.parametrize("name", ["sweep.json", "limits/0001.json", "status.json", "trials/0001.json"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_sweep_hides_no_other(store: Store, name: str, damage: bytes) -> None:
    broken = new_sweep(store, "broken")
    for sweep in (new_sweep(store, "whole"), broken):
        sweep.record_trial(1, {"learning_rate": 2e-3})
    broken.store.write(name, damage)

    listed = CliRunner().invoke(build_app(), ["sweeps", "ls", "--store", store.uri])
    assert listed.exit_code == 0, listed.output
    assert "whole" in listed.stdout
    assert f"broken/{name} is damaged" in " ".join(listed.output.split())
    shown = CliRunner().invoke(build_app(), ["sweeps", "show", "broken", "--store", store.uri])
    assert shown.exit_code != 0


def test_a_sweep_killed_between_a_trial_and_its_job_goes_on(prefect_api: str, store: Store) -> None:
    sweep = new_sweep(store, "no-job", trials=2)
    sweep.record_trial(1, {"learning_rate": 2e-3})
    sweep.job(1).store.delete("job.json")

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=4), persist_result=False)
    def run() -> JobState:
        return carry_on(sweep).state

    assert run() is JobState.COMPLETED
    assert [bool(trial.losses) for trial in sweep.read_trials()] == [True, True]
