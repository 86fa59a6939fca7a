"""What the pipeline around a training costs: `python -m benchmarks.orchestration [--quick]`.

Times the same training bare (`python -m crucible.training`), which takes about three minutes here, and as a newcomer
runs it, from `prefect deployment run train-nanogpt` to the end of its supervision, evaluation and export included, on a
server and worker that are up: bare, pipeline, pipeline, bare, so that a machine that gets slower meanwhile favours
neither. Prints the ratio, the seconds of the pipeline around the trainer's steps, and from the records of a shorter
training, killed twice, what a recovery takes against a cold start: the seconds from the decision to launch an attempt
to its first new step.
"""

from __future__ import annotations

import argparse
import json
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
from crucible.job_status import JobState, status_of
from crucible.jobs import Job
from crucible.presence import present
from crucible.rehearsal.drill.stage import Stage, local_stage

DATASET = DatasetConfig(source="python-stdlib", max_bytes=2_000_000)
BARE_SECONDS = 180.0
TRIAL_STEPS = 400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a shorter training; the ratio then says little")
    quick = parser.parse_args().quick
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
    result: dict[str, Any] = {
        "steps": steps,
        "bare_seconds": [round(seconds, 1) for seconds in bare],
        "orchestrated_seconds": [round(seconds, 1) for seconds in orchestrated],
        "ratio": round(sum(orchestrated) / sum(bare), 3),
        "seconds_around_the_steps": [round(a - b, 1) for a, b in zip(orchestrated, training, strict=True)],
        "cold_start_seconds": cold,
        "recovery_seconds": recoveries,
        "recovery_ratio": round(statistics.median(recoveries) / cold, 2),
    }
    print(json.dumps(result, indent=2))
    write_result("orchestration", result)


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
        claim = job.attempt(number).claim
        assert claim is not None
        psutil.Process(claim.pid).kill()
    _wait(lambda: (status := status_of(job)) is not None and status.state is not JobState.RUNNING)
    status = status_of(job)
    assert status is not None
    assert status.state is JobState.COMPLETED, status.reason
    _wait(lambda: not present(stage.store))  # evaluation and export included
    return time.monotonic() - began


def _training_seconds(job: Job) -> float:
    """From the first step to the end of the one attempt."""
    (attempt,) = job.attempts()
    outcome = attempt.outcome
    assert outcome is not None
    assert outcome.first_step_after_seconds is not None
    return outcome.seconds - outcome.first_step_after_seconds


def _committed(job: Job, number: int) -> bool:
    heartbeat, start = job.attempt(number).heartbeat, job.attempt(number).start
    return heartbeat is not None and start is not None and heartbeat.committed_step > start.step


def _first_steps(job: Job) -> list[float]:
    """For each attempt, seconds from the decision to launch it to its first new step."""
    found = []
    for attempt in job.attempts():
        launch, claim, outcome = attempt.launch, attempt.claim, attempt.outcome
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
