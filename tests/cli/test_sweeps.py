from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import crucible
from crucible.config import TrainConfig
from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.records import Claim, EndReason, JobSpec, Launch, Outcome, Start, now
from crucible.jobs.stage_records import StageRun
from crucible.jobs.status import JobState
from crucible.store import Store
from crucible.supervision.heartbeat import SupervisorHeartbeat
from crucible.sweeps import Sweep, SweepStatus
from tests.sweeps.carry_out import new_sweep

Run = Callable[..., Any]


def measured(sweep: Sweep, trial: int, rate: float, losses: dict[int, float]) -> None:
    """A trial that was trained to some rungs, one attempt each."""
    sweep.record_trial(trial, {"learning_rate": rate})
    job = sweep.job(trial)
    for number, (step, loss) in enumerate(losses.items(), start=1):
        job.decide(Launch(number=number, pool="local", reason="test", stop_at_step=step, usd_per_hour=1.0))
        attempt = job.attempt(number).take(Claim(number=number))
        attempt.begin(Start(step=0))
        attempt.append_metrics(0, json.dumps({"step": step, "val_loss": loss}).encode() + b"\n")
        reason = EndReason.COMPLETED if step == sweep.read_spec().ladder[-1] else EndReason.PAUSED
        attempt.end(
            Outcome(end_reason=reason, message="done", step=step, committed_step=step, cost_usd=0.25, seconds=9)
        )


@pytest.fixture
def sweep(store: Store) -> Sweep:
    made = new_sweep(store, "rates", trials=5)
    measured(made, 1, 0.004, {2: 3.0})
    measured(made, 2, 0.002, {2: 2.5, 4: 2.25, 8: 2.125})
    measured(made, 3, 0.006, {2: 2.0, 4: 2.375})
    measured(made, 4, 0.008, {2: float("nan")})
    made.set_status(SweepStatus(state=JobState.COMPLETED, reason="4 trials"))
    return made


def test_ls_lists_sweeps(run: Run, sweep: Sweep) -> None:
    [line] = run("sweeps", "ls", "--json")
    assert line["sweep"] == "rates"
    assert (line["trials"], line["max_trials"], line["failed"], line["best_trial"]) == (4, 5, 1, 2)
    assert line["cost_usd"] == pytest.approx(7 * 0.25)
    assert "2.1250" in run("sweeps", "ls")


def test_ls_of_nothing_says_how_to_begin(run: Run, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    assert "prefect deployment run tune-nanogpt" in run("sweeps", "ls")


def test_show_ranks_who_was_trained_further_first_and_failures_last(run: Run, sweep: Sweep) -> None:
    shown = run("sweeps", "show", "rates", "--json")
    assert [row["trial"] for row in shown["leaderboard"]] == [2, 3, 1, 4]
    assert [row["state"] for row in shown["leaderboard"]] == ["complete", "stopped early", "stopped early", "failed"]
    assert [row["val_loss"] for row in shown["leaderboard"]] == [2.125, 2.375, 3.0, None]
    text = run("sweeps", "show", "rates")
    assert "no number" in text
    assert "$1.75" in text

    table = list(csv.DictReader(io.StringIO(run("sweeps", "show", "rates", "--csv"))))
    assert [row["learning_rate"] for row in table] == ["0.002", "0.006", "0.004", "0.008"]

    best = TrainConfig.parse(yaml.safe_load(run("sweeps", "show", "rates", "--best")))
    assert best.learning_rate == 0.002
    frame = crucible.sweep("rates", sweep.root.uri).trials()
    assert list(frame["trial"]) == [2, 3, 1, 4]
    assert frame["cost_usd"].sum() == pytest.approx(1.75)


def test_limits_are_shown_changed_and_checked(run: Run, sweep: Sweep) -> None:
    assert run("sweeps", "limits", "rates", "--max-cost-usd", "2", "--json")["max_cost_usd"] == 2.0
    assert run("sweeps", "limits", "rates", "--max-trials", "9", "--max-cost-usd", "none") == (
        "rates: 9 trials, any cost, any time\n"
    )
    assert sweep.read_limits().max_trials == 9
    with pytest.raises(ConfigError, match="max_trials = '0' is not valid"):
        run("sweeps", "limits", "rates", "--max-trials", "0")
    with pytest.raises(ConfigError, match="finish_by is 'soon'"):
        run("sweeps", "limits", "rates", "--finish-by", "soon")


def test_what_cannot_be_done_is_told_with_what_can(run: Run, sweep: Sweep) -> None:
    with pytest.raises(ConfigError, match=r"there is no sweep 'rate'.*did you mean rates"):
        run("sweeps", "show", "rate")
    with pytest.raises(ConfigError, match="sweep rates has no running trial"):
        run("sweeps", "stop", "rates")
    with pytest.raises(ConfigError, match="sweep rates was not started by a flow run; start the program"):
        run("sweeps", "continue", "rates")
    sweep.set_status(SweepStatus(state=JobState.RUNNING, reason=""))
    with pytest.raises(ConfigError, match="sweep rates was not started by a flow run"):
        run("sweeps", "continue", "rates")  # its process died, which nobody has put on record
    alive = SupervisorHeartbeat(flow_run_id="at-work", subject="rates", at=now())
    sweep.root.write_model("supervisor-heartbeats/at-work.json", alive)
    with pytest.raises(ConfigError, match="sweep rates is running"):
        run("sweeps", "continue", "rates")


def test_stop_asks_every_running_trial(run: Run, sweep: Sweep) -> None:
    sweep.record_trial(5, {"learning_rate": 0.003})
    sweep.job(5).decide(Launch(number=1, pool="local", reason="test"))
    sweep.job(5).attempt(1).take(Claim(number=1))
    assert run("sweeps", "stop", "rates", "--json")["trials"] == [5]
    request = sweep.job(5).attempt(1).read_stop_request()
    assert request is not None
    assert request.end_reason is EndReason.CANCELLED


def test_stop_asks_a_stage_around_the_trials(run: Run, sweep: Sweep) -> None:
    sweep.record_trial(5, {"learning_rate": 0.003})
    evaluation = Job.create(sweep.root, JobSpec(job_id="rates-0005-evaluate-local", evaluates="rates-0005"))
    evaluation.decide(Launch(number=1, pool="local", reason="test"))
    sweep.job(5).write_stage(StageRun(name=evaluation.job_id, stage="evaluate", pool="local", job=evaluation.job_id))
    assert run("sweeps", "stop", "rates", "--json")["stages"] == [evaluation.job_id]
    assert evaluation.attempt(1).read_stop_request() is not None
