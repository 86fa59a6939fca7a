"""What the pipeline around a training costs: `python -m benchmarks.orchestration [--quick | --steps]`.

Times the same training bare (`python -m crucible.training`, about three minutes), and as a new user runs it, from
`prefect deployment run train-nanogpt` to the end of its supervision, evaluation and export included, on a server and
worker that are up. The order is bare, pipeline, pipeline, bare, so that a machine that slows down favours neither.
Prints the ratio, the seconds of the pipeline around the trainer's steps, and from the records of a shorter training,
killed twice, the time of a recovery against a cold start: from the decision to launch an attempt to its first new step.

On a machine whose speed drifts by a tenth within minutes, this is too coarse for the orchestration overhead per step.
`--steps` measures only that: while a training runs, server, worker, agent and supervisor are stopped (SIGSTOP) and
continued for a few seconds in turns, and the steps per second are compared pair by pair.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.results import write_result
from crucible.config import TrainConfig
from crucible.datasets.build import build_dataset
from crucible.datasets.config import DatasetConfig
from crucible.datasets.fetch import fetch_dataset
from crucible.jobs.job import Job
from crucible.jobs.status import JobState, status_of
from crucible.rehearsal.drill.stage import Stage, local_stage
from crucible.supervision.heartbeat import supervisor_heartbeats

DATASET = DatasetConfig(source="python-stdlib", max_bytes=2_000_000)
BARE_SECONDS = 180.0
TRIAL_STEPS = 400
PAIRS = 10
TURN_SECONDS = 6.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a shorter training; the ratio then says little")
    parser.add_argument("--steps", action="store_true", help="only what it takes from the steps, in turns of seconds")
    options = parser.parse_args()
    if options.steps:
        show_and_keep("orchestration_steps", measure_steps())
        return
    show_and_keep("orchestration", measure_runs(options.quick))


def show_and_keep(name: str, result: dict[str, Any]) -> None:
    """Print a result and leave it in `benchmarks/results`."""
    print(json.dumps(result, indent=2))
    write_result(name, result)


def measure_runs(quick: bool) -> dict[str, Any]:
    """Whole runs, bare and through the pipeline."""
    with (
        tempfile.TemporaryDirectory(prefix="crucible-bench-", ignore_cleanup_errors=True) as folder,
        local_stage(Path(folder)) as stage,
    ):
        digest = build_dataset(DATASET, stage.store).digest
        data = fetch_dataset(stage.store, digest, stage.home.root / "cache" / "datasets")
        steps = 300 if quick else _steps_in(BARE_SECONDS, stage, data)
        config = TrainConfig.preset("cpu-small", max_iters=steps)
        bare = [_bare(stage, config, data)]
        orchestrated = [_orchestrated(stage, config, name, kills=0) for name in ("first", "second")]
        bare.append(_bare(stage, config, data))
        training = [_training_seconds(Job(stage.store, name)) for name in ("first", "second")]
        _orchestrated(stage, TrainConfig.preset("cpu-small", max_iters=min(steps, 1500)), "killed", kills=2)
        starts = _first_steps(Job(stage.store, "killed"))
    cold, recoveries = starts[0], starts[1:]
    return {
        "steps": steps,
        "bare_seconds": [round(seconds, 1) for seconds in bare],
        "orchestrated_seconds": [round(seconds, 1) for seconds in orchestrated],
        "ratio": round(sum(orchestrated) / sum(bare), 3),
        "seconds_around_the_steps": [round(a - b, 1) for a, b in zip(orchestrated, training, strict=True)],
        "cold_start_seconds": cold,
        "recovery_seconds": recoveries,
        "recovery_ratio": round(statistics.median(recoveries) / cold, 2),
    }


def measure_steps() -> dict[str, Any]:
    """Steps per second with all of the pipeline stopped, and with it going on, in one training."""
    speeds: dict[bool, list[float]] = {True: [], False: []}
    with (
        tempfile.TemporaryDirectory(prefix="crucible-bench-", ignore_cleanup_errors=True) as folder,
        local_stage(Path(folder)) as stage,
    ):
        config = {"max_iters": 1_000_000, "eval_interval": 1_000_000}
        parameters = {
            "preset": "cpu-small",
            "config": config,
            "dataset": DATASET.model_dump(mode="json"),
            "job": "long",
        }
        stage.prefect("deployment", "run", "train-nanogpt", "--params", json.dumps(parameters))
        job = Job(stage.store, "long")
        _wait(
            lambda: bool(job.attempts()) and (beat := job.attempts()[-1].read_heartbeat()) is not None and beat.step > 0
        )
        metrics = next((stage.home.root / "scratch").rglob("metrics.jsonl"))
        beside = _pipeline_processes(stage.home.root)
        try:
            for turn in range(2 * PAIRS):
                stopped = turn % 4 in (0, 3)
                for process in beside:
                    process.send_signal(signal.SIGSTOP if stopped else signal.SIGCONT)
                speeds[stopped].append(_steps_per_second(metrics))
        finally:
            for process in beside:
                process.send_signal(signal.SIGCONT)
        stage.crucible("jobs", "stop", "long")
        _wait(lambda: not supervisor_heartbeats(stage.store))
    pairs = [alone / together for alone, together in zip(speeds[True], speeds[False], strict=True)]
    return {
        "steps_per_second_stopped": [round(speed, 2) for speed in speeds[True]],
        "steps_per_second_going_on": [round(speed, 2) for speed in speeds[False]],
        "ratio_of_pairs": [round(ratio, 3) for ratio in pairs],
        "ratio": round(statistics.median(pairs), 3),
    }


def _pipeline_processes(home: Path) -> list[psutil.Process]:
    """Server, worker, watchdog, supervisor and agent of this stage, and of no other that may run on the machine."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        command = " ".join(process.info["cmdline"] or [])
        ours = (process.info["environ"] or {}).get("CRUCIBLE_HOME") == str(home)
        if ours and ("-m prefect.engine" in command or "-m crucible.local." in command):
            found.append(process)
    return found


def _steps_per_second(metrics: Path) -> float:
    """Between two reports of the trainer, some seconds apart."""
    time.sleep(0.5)
    first, began = _next_report(metrics)
    time.sleep(TURN_SECONDS)
    last, ended = _next_report(metrics)
    return (last - first) / (ended - began)


def _next_report(metrics: Path) -> tuple[int, float]:
    """The step that the trainer reports next, and when."""
    size = metrics.stat().st_size
    while metrics.stat().st_size == size:
        time.sleep(0.005)
    return int(json.loads(metrics.read_text().splitlines()[-1])["step"]), time.monotonic()


def _steps_in(seconds: float, stage: Stage, data: Path) -> int:
    """How many steps a bare training makes in so long, start and end included; from two shorter ones."""
    once, twice = (
        _bare(stage, TrainConfig.preset("cpu-small", max_iters=steps), data) for steps in (TRIAL_STEPS, 2 * TRIAL_STEPS)
    )
    return round((seconds - once) / (twice - once) * TRIAL_STEPS + TRIAL_STEPS)


def _bare(stage: Stage, config: TrainConfig, data: Path) -> float:
    folder = Path(tempfile.mkdtemp(prefix="bare-", dir=stage.home.root))
    (folder / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-m", "crucible.training", "--config", str(folder / "config.json"), "--data", str(data)]
    began = time.monotonic()
    subprocess.run(
        command, env={**stage.environment, "CRUCIBLE_CHECKPOINT_DIR": str(folder / "checkpoints")}, check=True
    )
    return time.monotonic() - began


def _orchestrated(stage: Stage, config: TrainConfig, job_id: str, kills: int) -> float:
    parameters = {
        "preset": "cpu-small",
        "config": {"max_iters": config.max_iters},
        "dataset": DATASET.model_dump(mode="json"),
        "job": job_id,
    }
    began = time.monotonic()
    stage.prefect("deployment", "run", "train-nanogpt", "--params", json.dumps(parameters))
    job = Job(stage.store, job_id)
    for number in range(1, kills + 1):
        _wait(lambda number=number: _committed(job, number))  # type: ignore[misc]
        claim = job.attempt(number).read_claim()
        assert claim is not None
        psutil.Process(claim.pid).kill()
    _wait(lambda: (status := status_of(job)) is not None and status.state is not JobState.RUNNING)
    status = status_of(job)
    assert status is not None
    assert status.state is JobState.COMPLETED, status.reason
    _wait(lambda: not supervisor_heartbeats(stage.store))  # evaluation and export included
    return time.monotonic() - began


def _training_seconds(job: Job) -> float:
    """From the first step to the end of the one attempt."""
    (attempt,) = job.attempts()
    outcome = attempt.read_outcome()
    assert outcome is not None
    assert outcome.first_step_after_seconds is not None
    return outcome.seconds - outcome.first_step_after_seconds


def _committed(job: Job, number: int) -> bool:
    heartbeat, start = job.attempt(number).read_heartbeat(), job.attempt(number).read_start()
    return heartbeat is not None and start is not None and heartbeat.committed_step > start.step


def _first_steps(job: Job) -> list[float]:
    """For each attempt, seconds from the decision to launch it to its first new step."""
    found = []
    for attempt in job.attempts():
        launch, claim, outcome = attempt.read_launch(), attempt.read_claim(), attempt.read_outcome()
        if launch and claim and outcome and outcome.first_step_after_seconds is not None:
            waited = (claim.claimed_at - launch.decided_at).total_seconds()
            found.append(round(waited + outcome.first_step_after_seconds, 2))
    return found


def _wait(holds: Any) -> None:
    deadline = time.monotonic() + 600
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError("the run made no progress for ten minutes")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
