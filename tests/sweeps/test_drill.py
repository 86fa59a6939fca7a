"""The drill of sweeps: real trials on a set-up of its own, the tune flow killed and its trials killed, by a seed."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from crucible.jobs.job import Attempt
from crucible.jobs.records import EndReason
from crucible.jobs.status import JobState
from crucible.local.access import connect
from crucible.local.state import State
from crucible.rehearsal.drill.stage import Stage, local_stage
from crucible.sweeps import Sweep
from crucible.sweeps.leaderboard import digest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SEED = 5
FLOW_KILLS, TRIAL_KILLS = 5, 10
SPARED = 0.4
SWEEP = {
    "preset": "debug",
    "config": {"max_iters": 360, "fast_gemm": "off", "checkpoint_interval_seconds": 1.0},
    "space": {"learning_rate": [1e-3, 3e-3, 1e-2], "n_embd": [16, 32, 64], "dropout": [0.0, 0.1, 0.2]},
    "sampler": "grid",
    "parallelism": 2,
    "dataset": {"source": "python-stdlib", "max_bytes": 100_000},
    "run_evaluation": False,
}


def start(stage: Stage, name: str, **changes: Any) -> str:
    """`prefect deployment run tune-nanogpt`; returns the flow run's id."""
    values = {**SWEEP, "sweep": name, **changes}
    said = stage.prefect("deployment", "run", "tune-nanogpt", "--params", json.dumps(values))
    return said.split("UUID:")[1].split()[0]


def eventually(holds: Callable[[], Any], what: str, seconds: float = 900) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)
    return found


def state_of(stage: Stage, run: str) -> str:
    with connect(stage.home, State.load(stage.home).api_url or "") as api:
        found: str = api.get(f"/flow_runs/{run}").json()["state"]["type"]
    return found


def completed(sweep: Sweep) -> bool:
    status = sweep.read_status() if sweep.exists() else None
    if status is None or status.state is JobState.RUNNING:
        return False
    assert status.state is JobState.COMPLETED, status.reason
    return True


def running(sweep: Sweep) -> list[Attempt]:
    """The attempts that train just now, in a process that lives."""
    if not sweep.exists():
        return []
    newest = [sweep.job(record.number).attempts()[-1:] for record in sweep.read_trial_records()]
    attempts = [attempt for last in newest for attempt in last]
    training = [
        a for a in attempts if a.read_outcome() is None and (beat := a.read_heartbeat()) and beat.phase == "training"
    ]
    return [attempt for attempt in training if (claim := attempt.read_claim()) and psutil.pid_exists(claim.pid)]


def victim_of(attempt: Attempt, kind: str) -> psutil.Process | None:
    """The flow's process, or the one that trains, with the job's name; None if it is gone or not there yet."""
    claim = attempt.read_claim()
    assert claim is not None
    try:
        if kind == "flow":
            return psutil.Process(claim.pid)
        for process in psutil.Process(claim.pid).children(recursive=True):
            line = " ".join(process.cmdline())
            if "crucible.training" in line and "tether" not in line and f"{attempt.job.job_id}-" in line:
                return process
    except psutil.NoSuchProcess:
        return None
    return None


def start_step(attempt: Attempt) -> int:
    start = attempt.read_start()
    return start.step if start else 0


def leaderboard(sweep: Sweep) -> list[dict[str, Any]]:
    return sweep.leaderboard()


def test_five_kills_of_the_flow_and_ten_of_its_trials_change_nothing(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    with local_stage(tmp_path) as stage:
        start(stage, "undisturbed")
        undisturbed = Sweep(stage.store, "undisturbed")
        eventually(lambda: completed(undisturbed), "the end of the undisturbed sweep")

        start(stage, "killed")
        sweep = Sweep(stage.store, "killed")
        victims = ["flow"] * FLOW_KILLS + ["trial"] * TRIAL_KILLS
        chance.shuffle(victims)
        strikes: Counter[tuple[str, int]] = Counter()
        chosen: dict[tuple[str, int], bool] = {}

        def may_be_struck(attempt: Attempt) -> bool:
            """Some are spared, so that kills are spread over the sweep; and none more than three times at one step:
            killed again and again before it saved anything, a trial rightly counts as failed."""
            key = attempt.job.job_id, attempt.number
            if key not in chosen:
                chosen[key] = chance.random() > SPARED
            return chosen[key] and strikes[attempt.job.job_id, start_step(attempt)] < 3

        for victim in victims:

            def strike(victim: str = victim) -> bool:
                assert not completed(sweep), f"the sweep was over after {strikes.total()} strikes"
                ready = [attempt for attempt in running(sweep) if may_be_struck(attempt)]
                if not ready:
                    return False
                attempt = chance.choice(ready)
                process = victim_of(attempt, victim)
                if process is None:
                    return False
                hit = running(sweep) if victim == "flow" else [attempt]
                strikes.update((attempt.job.job_id, start_step(attempt)) for attempt in hit)
                process.kill()
                process.wait(10)
                if victim == "trial":
                    eventually(lambda: attempt.read_outcome(), "the agent's word on its dead workload")
                return True

            eventually(strike, f"a {victim} to kill")
        eventually(lambda: completed(sweep), "the end of the killed sweep")

    ends = [
        ended.end_reason
        for t in sweep.read_trials()
        for a in sweep.job(t.number).attempts()
        if (ended := a.read_outcome())
    ]
    print({reason: ends.count(reason) for reason in set(ends)})
    assert ends.count(EndReason.KILLED) == TRIAL_KILLS
    assert ends.count(EndReason.LOST) >= FLOW_KILLS
    assert digest(leaderboard(sweep)) == digest(leaderboard(undisturbed))


def test_cancel_saves_every_trial_and_continue_goes_on(tmp_path: Path) -> None:
    with local_stage(tmp_path) as stage:
        run = start(stage, "cancelled")
        sweep = Sweep(stage.store, "cancelled")
        eventually(lambda: len(running(sweep)) == 2, "two trials")
        stage.prefect("flow-run", "cancel", run)
        eventually(lambda: state_of(stage, run) == "CANCELLED", "the end of the flow run")
        assert sweep.read_status() is not None
        assert sweep.read_status().state is JobState.CANCELLED
        ended = [sweep.job(record.number).attempts()[-1].read_outcome() for record in sweep.read_trial_records()]
        assert all(outcome and outcome.committed_step == outcome.step for outcome in ended)

        stage.crucible("sweeps", "continue", "cancelled")
        eventually(
            lambda: sweep.read_status() is not None and sweep.read_status().state is not JobState.CANCELLED, "the start"
        )
        eventually(lambda: completed(sweep), "the end of the sweep")
        assert max(trial.step for trial in sweep.read_trials()) == 360
