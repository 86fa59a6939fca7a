"""The drill itself: train a small job while a seeded plan interrupts it, and compare it with an undisturbed one."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from crucible.checkpoints.commits import Checkpoints
from crucible.config import TrainConfig
from crucible.contract import METRICS_FILE, Variable, file_sha256, finished_folders
from crucible.datasets.build import build_dataset
from crucible.datasets.config import DatasetConfig
from crucible.datasets.fetch import fetch_dataset
from crucible.errors import ServiceError
from crucible.jobs.job import Attempt, Job
from crucible.jobs.status import JobState, status_of
from crucible.rehearsal.drill.faults import Fault
from crucible.rehearsal.drill.plan import make_plan
from crucible.rehearsal.drill.scene import Scene
from crucible.rehearsal.drill.stage import Stage

WEIGHTS = "model.safetensors"
CHECKPOINT_SECONDS = 1.0
SECONDS_BETWEEN_FAULTS = 4.0
"""Of training: enough for a commit, the pause drawn, and some steps to lose."""
PROBE_STEPS = 60
STRIKE_TIMEOUT_SECONDS = 240.0
STANDSTILL_SECONDS = 240.0
WENT_ON = "went on"

OnChange = Callable[["Drill"], None]


@dataclass
class Strike:
    """One fault and what became of it. Steps are counts, times seconds."""

    fault: str
    words: str
    attempt: int = 0
    step: int = 0
    committed_step: int = 0
    """The newest commit on record just before the strike."""
    resumed_step: int | None = None
    """Where the next attempt took up."""
    steps_repeated: int = 0
    committed_steps_lost: int = 0
    end_reason: str = ""
    seconds_to_new_step: float | None = None
    """From the strike to the next attempt's first new step, detection included."""
    struck_at: float | None = None
    """Unix time of the strike; None when its moment never came."""


@dataclass
class DrillResult:
    """What a drill found. It passes when every fault struck, no committed step was lost and the weights are equal."""

    seed: int
    pool: str
    store: str
    kills: int
    struck: int
    attempts: int
    committed_steps_lost: int
    steps_repeated: int
    steps: int
    seconds: float
    undisturbed_seconds: float
    weights_sha256: str
    undisturbed_sha256: str
    state: str
    pools: list[str]
    """Where each attempt was sent, from the first to the last."""
    cost_usd: float
    """The job's one bill over all of them."""
    left_running: list[str]
    strikes: list[Strike] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """Why it did not pass, one sentence each."""
        found = []
        if self.state != JobState.COMPLETED:
            found.append(f"the job ended as {self.state}")
        if self.struck < self.kills:
            found.append(f"only {self.struck} of {self.kills} faults could strike")
        if self.committed_steps_lost:
            found.append(f"{self.committed_steps_lost} committed steps were lost")
        if self.weights_sha256 != self.undisturbed_sha256:
            found.append("the final weights differ from the undisturbed run's")
        if self.left_running:
            found.append(f"still running: {', '.join(self.left_running)}")
        return found

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed, "failures": self.failures}


class Drill:
    """`Drill(stage, kills, seed).run()`; `on_change` is called at every change, for a live table."""

    def __init__(
        self,
        stage: Stage,
        kills: int,
        seed: int,
        on_change: OnChange = lambda drill: None,
        seconds_between_faults: float = SECONDS_BETWEEN_FAULTS,
    ) -> None:
        self.stage, self.seed, self._on_change = stage, seed, on_change
        self._seconds_between_faults = seconds_between_faults
        self.plan = make_plan(stage.faults, kills, seed)
        self.strikes = [Strike(fault.name, fault.words) for fault in self.plan]
        self.phase = "setting up"
        self.total_steps = 0
        self._steps_per_second = 0.0
        self.rng = Random(seed)
        self.job = Job(stage.store, f"drill-{seed}")

    def run(self) -> DrillResult:
        """Raises `CrucibleError` when the drill itself cannot be carried out."""
        self._say("making the dataset")
        info = build_dataset(DatasetConfig(source="python-stdlib", max_bytes=500_000), self.stage.store)
        data = fetch_dataset(self.stage.store, info.digest, self.stage.home.root / "cache" / "datasets")
        self._say("training undisturbed")
        config = self._sized(data)
        self.total_steps = config.max_iters
        undisturbed_sha256, undisturbed_seconds, _ = self._bare(config, data)
        self._say("starting train-nanogpt")
        began = time.monotonic()
        self._start(config)
        scene = Scene(self.job, self.stage.home, self.rng, self.stage.restart_server, self.stage.announce_reclaim)
        for fault, strike in zip(self.plan, self.strikes, strict=True):
            if not self._strike(scene, fault, strike):
                break
        self._say("waiting for the job's end")
        self._await_end()
        return self._result(began, undisturbed_seconds, undisturbed_sha256)

    def _sized(self, data: Path) -> TrainConfig:
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
        _, _, self._steps_per_second = self._bare(config, data)
        seconds = (len(self.plan) + 2) * self._seconds_between_faults + sum(
            fault.training_seconds for fault in self.plan
        )
        return config.with_overrides({"max_iters": max(int(seconds * self._steps_per_second), 10 * PROBE_STEPS)})

    def _bare(self, config: TrainConfig, data: Path) -> tuple[str, float, float]:
        """Train without Crucible around it: the final weights' sha256, the seconds it took, and steps per second."""
        folder = self.stage.home.root / "undisturbed" / f"{self.seed}-{config.max_iters}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(config.model_dump_json())
        environment = {k: v for k, v in self.stage.environment.items() if not k.startswith("CRUCIBLE_RESUME")}
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

    def _start(self, config: TrainConfig) -> None:
        parameters = {
            "preset": "debug",
            "config": config.model_dump(mode="json", exclude_defaults=False),
            "dataset": {"source": "python-stdlib", "max_bytes": 500_000},
            "job": self.job.job_id,
            "max_attempts": 3 * len(self.plan) + 5,
            "run_evaluation": False,
            **self.stage.parameters,
        }
        self.stage.prefect("deployment", "run", "train-nanogpt", "--params", json.dumps(parameters))

    def _strike(self, scene: Scene, fault: Fault, strike: Strike) -> bool:
        """Wait for the fault's moment, strike, and see the attempt end; False when its moment never came."""
        self._say(f"waiting to strike: {fault.words}")
        scene.steps_to_wait = int(self.rng.uniform(0.0, 1.0) * self._steps_per_second * CHECKPOINT_SECONDS)
        before = _newest(self.job)
        if not self._until(
            lambda: self._final_state() is not None or fault.ready(scene), STRIKE_TIMEOUT_SECONDS, fault.look_seconds
        ):
            return False
        struck_attempt = _newest(self.job) or before
        if struck_attempt is None or self._final_state() is not None:
            return False
        strike.attempt = struck_attempt.number
        strike.committed_step = self._committed_step()
        if not fault.strike(scene):
            return self._strike(scene, fault, strike)
        strike.struck_at = time.time()
        strike.committed_step = max(strike.committed_step, self._committed_step())
        self._say(f"struck: {fault.words}")
        if fault.ends_attempt:
            self._until(lambda: struck_attempt.read_outcome() is not None, STRIKE_TIMEOUT_SECONDS)
            outcome = struck_attempt.read_outcome()
            strike.end_reason = str(outcome.end_reason) if outcome else "none on record"
            strike.step = outcome.step if outcome else 0
            if fault.with_notice and outcome:
                strike.committed_step = max(strike.committed_step, outcome.step)
            self.stage.replace_machine()
        else:
            strike.end_reason = WENT_ON
        return True

    def _await_end(self) -> None:
        """However many steps are left, as long as it gets on with them."""
        before = -1
        while self._final_state() is None and (committed := self._committed_step()) > before:
            before = committed
            self._until(lambda: self._final_state() is not None, STANDSTILL_SECONDS)

    def _committed_step(self) -> int:
        newest = next(iter(Checkpoints(self.job).list()), None)
        return newest.step if newest else 0

    def _result(self, began: float, undisturbed_seconds: float, undisturbed_sha256: str) -> DrillResult:
        attempts = {attempt.number: attempt for attempt in self.job.attempts()}
        for strike in self.strikes:
            following = attempts.get(strike.attempt + 1)
            start = following.read_start() if following else None
            if strike.struck_at is None or following is None or start is None or strike.end_reason == WENT_ON:
                continue
            strike.resumed_step = start.step
            strike.steps_repeated = max(0, strike.step - start.step)
            strike.committed_steps_lost = max(0, strike.committed_step - start.step)
            strike.seconds_to_new_step = _first_step_after(following, strike.struck_at)
        final = next(iter(Checkpoints(self.job).list()), None)
        finished = final is not None and final.step == self.total_steps
        return DrillResult(
            seed=self.seed,
            pool=str(self.stage.parameters.get("pool", "local")),
            store=self.stage.store.uri.split(":")[0],
            kills=len(self.plan),
            struck=sum(strike.struck_at is not None for strike in self.strikes),
            attempts=len(attempts),
            committed_steps_lost=sum(strike.committed_steps_lost for strike in self.strikes),
            steps_repeated=sum(strike.steps_repeated for strike in self.strikes),
            steps=self.total_steps,
            seconds=round(time.monotonic() - began, 1),
            undisturbed_seconds=round(undisturbed_seconds, 1),
            weights_sha256=next(f.sha256 for f in final.files if f.name == WEIGHTS) if final and finished else "",
            undisturbed_sha256=undisturbed_sha256,
            state=str(self._final_state() or "not ended"),
            pools=[launch.pool for attempt in attempts.values() if (launch := attempt.read_launch())],
            cost_usd=round(self.job.cost_usd(), 6),
            left_running=self.stage.still_running(),
            strikes=self.strikes,
        )

    def _final_state(self) -> JobState | None:
        status = status_of(self.job)
        return status.state if status and status.state is not JobState.RUNNING else None

    def _until(self, holds: Callable[[], bool], timeout_seconds: float, look_seconds: float = 0.25) -> bool:
        deadline = time.monotonic() + timeout_seconds
        notified = 0.0
        while time.monotonic() < deadline:
            if holds():
                return True
            if time.monotonic() - notified > 0.5:
                notified = time.monotonic()
                self._on_change(self)
            time.sleep(look_seconds)
        return False

    def _say(self, phase: str) -> None:
        self.phase = phase
        self._on_change(self)


def _newest(job: Job) -> Attempt | None:
    attempts = job.attempts()
    return attempts[-1] if attempts else None


def _first_step_after(attempt: Attempt, struck_at: float) -> float | None:
    """Seconds from the strike to the attempt's first new step."""
    claim, outcome = attempt.read_claim(), attempt.read_outcome()
    if claim is None or outcome is None or outcome.first_step_after_seconds is None:
        return None
    return round(claim.claimed_at.timestamp() + outcome.first_step_after_seconds - struck_at, 1)
