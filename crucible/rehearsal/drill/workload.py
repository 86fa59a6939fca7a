"""What a drill trains: Crucible's own trainer here, a script of your own in `script.py`."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Protocol

from crucible.checkpoints.commits import Checkpoints
from crucible.config import TrainConfig
from crucible.contract import METRICS_FILE, Variable, file_sha256, finished_folders
from crucible.datasets.build import build_dataset
from crucible.datasets.config import DatasetConfig
from crucible.datasets.fetch import fetch_dataset
from crucible.errors import ServiceError
from crucible.jobs.job import Job
from crucible.rehearsal.drill.faults import Fault
from crucible.rehearsal.drill.scene import Scene
from crucible.rehearsal.drill.stage import Stage

WEIGHTS = "model.safetensors"
CHECKPOINT_SECONDS = 1.0
SECONDS_BETWEEN_FAULTS = 4.0
"""Of training: enough for a commit, the pause drawn, and some steps to lose."""
PROBE_STEPS = 60

Log = Callable[[str], None]


@dataclass
class ScriptFindings:
    """What a drill found out about a script of your own."""

    folder: str
    interval_steps: int
    """Between two of the script's own saves, undisturbed; the median."""
    interval_seconds: float
    most_steps_repeated: int = 0
    """After one fault."""
    most_saves_lost: int = 0
    """Of the script, after one fault: whole ones that the next attempt did not resume from."""
    checkpoints_read: int = 0
    broken: list[str] = field(default_factory=list)
    """Committed checkpoints whose files are not whole."""
    exact: bool = False
    difference: str = ""
    """How the final files differ from the undisturbed run's; empty where they do not."""

    @property
    def failures(self) -> list[str]:
        """What must not be, one sentence each. A resume that is not exact is the script's own affair."""
        found = [f"committed, but not whole: {', '.join(self.broken)}"] if self.broken else []
        if self.most_saves_lost > 1:
            found.append(f"{self.most_saves_lost} of the script's saves were lost at once")
        return found


@dataclass
class Ending:
    """The final weights of the disturbed job."""

    sha256: str
    """Empty when the training did not get to its end."""
    findings: ScriptFindings | None = None


class Workload(Protocol):
    """What a drill trains, disturbed and undisturbed."""

    total_steps: int
    undisturbed_sha256: str

    @property
    def saves_on_notice(self) -> bool:
        """Whether it saves when the machine is about to go, so that no step may be lost then."""

    def prepare(self, stage: Stage, plan: Sequence[Fault], seed: int, log: Log) -> float:
        """Train undisturbed, long enough for the plan; returns the seconds it took. Raises `CrucibleError`."""

    def start(self, stage: Stage, job_id: str, max_attempts: int) -> None:
        """Start the job that will be disturbed."""

    def draw_moment(self, scene: Scene, rng: Random) -> None:
        """Draw how long the next fault waits after the attempt's first commit."""

    def reached_step(self, job: Job) -> int:
        """The step of the attempt under way, where it can be seen; else 0."""

    def look(self, job: Job) -> None:
        """Called about twice a second: look at what has been committed since."""

    def ending(self, job: Job) -> Ending:
        """Compare the end of the job with that of the undisturbed run."""


class Trainer:
    """Crucible's own trainer, as `train-nanogpt` starts it. It needs no look: it is compared bit by bit at the end."""

    saves_on_notice = True

    def __init__(self, seconds_between_faults: float = SECONDS_BETWEEN_FAULTS) -> None:
        self._seconds_between_faults = seconds_between_faults
        self._steps_per_second = 0.0
        self._config = TrainConfig.preset("debug")
        self.total_steps = 0
        self.undisturbed_sha256 = ""

    def prepare(self, stage: Stage, plan: Sequence[Fault], seed: int, log: Log) -> float:
        log("making the dataset")
        info = build_dataset(DatasetConfig(source="python-stdlib", max_bytes=500_000), stage.store)
        data = fetch_dataset(stage.store, info.digest, stage.home.root / "cache" / "datasets")
        log("training undisturbed")
        self._config = self._sized(stage, plan, seed, data)
        self.total_steps = self._config.max_iters
        self.undisturbed_sha256, seconds, _ = self._bare(stage, self._config, seed, data)
        return seconds

    def start(self, stage: Stage, job_id: str, max_attempts: int) -> None:
        parameters = {
            "preset": "debug",
            "config": self._config.model_dump(mode="json", exclude_defaults=False),
            "dataset": {"source": "python-stdlib", "max_bytes": 500_000},
            "job": job_id,
            "max_attempts": max_attempts,
            "run_evaluation": False,
            **stage.parameters,
        }
        stage.prefect("deployment", "run", "train-nanogpt", "--params", json.dumps(parameters))

    def draw_moment(self, scene: Scene, rng: Random) -> None:
        scene.steps_to_wait = int(rng.uniform(0.0, 1.0) * self._steps_per_second * CHECKPOINT_SECONDS)

    def reached_step(self, job: Job) -> int:
        return 0

    def look(self, job: Job) -> None:
        """Nothing to look at."""

    def ending(self, job: Job) -> Ending:
        final = next(iter(Checkpoints(job).list()), None)
        if final is None or final.step != self.total_steps:
            return Ending("")
        return Ending(next(file.sha256 for file in final.files if file.name == WEIGHTS))

    def _sized(self, stage: Stage, plan: Sequence[Fault], seed: int, data: Path) -> TrainConfig:
        """A config whose training is long enough on this machine for every fault to find it at work."""
        config = TrainConfig.preset(
            "debug",
            n_layer=2,
            n_embd=64,
            n_head=2,
            dropout=0.1,
            device="auto",  # the pools with GPUs refuse a run that would not use them
            max_iters=PROBE_STEPS,
            warmup_iters=10,
            eval_interval=1_000_000,
            checkpoint_interval_seconds=CHECKPOINT_SECONDS,
            threads=1,
        )
        _, _, self._steps_per_second = self._bare(stage, config, seed, data)
        seconds = (len(plan) + 2) * self._seconds_between_faults + sum(fault.training_seconds for fault in plan)
        return config.with_overrides({"max_iters": max(int(seconds * self._steps_per_second), 10 * PROBE_STEPS)})

    def _bare(self, stage: Stage, config: TrainConfig, seed: int, data: Path) -> tuple[str, float, float]:
        """Train without Crucible around it: the final weights' sha256, the seconds it took, and steps per second."""
        folder = stage.home.root / "undisturbed" / f"{seed}-{config.max_iters}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(config.model_dump_json())
        environment = {k: v for k, v in stage.environment.items() if not k.startswith("CRUCIBLE_RESUME")}
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "crucible.training", "--config", str(folder / "config.json"), "--data", str(data)],
            env={
                **environment,
                Variable.CHECKPOINT_DIR: str(folder / "checkpoints"),
                Variable.METRICS_FILE: str(folder / METRICS_FILE),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ServiceError(f"the undisturbed training failed: {done.stderr.strip().splitlines()[-1:]}")
        final = finished_folders(folder / "checkpoints")[-1]
        reported = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
        speeds = [1 / line["seconds_per_step"] for line in reported if line.get("seconds_per_step")]
        # At its fastest: a job that is too long for the plan only takes longer, one that is too short misses its end.
        return file_sha256(final / WEIGHTS), time.monotonic() - began, max(speeds)
