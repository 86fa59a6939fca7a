"""Records of jobs that never ran, for pictures: `python -m scripts.sample_jobs file:///tmp/sample`.

They are written through the records that agent and supervisor write, with losses, prices and interruptions as they are
on clouds; the pages made from them are made by the same code as every other page.
"""

from __future__ import annotations

import json
import math
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from crucible.checkpoints.commits import Checkpoints
from crucible.config import TrainConfig
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import (
    Claim,
    EndReason,
    Heartbeat,
    JobSpec,
    Launch,
    Limits,
    Notification,
    Outcome,
    Start,
    now,
)
from crucible.jobs.status import JobState, JobStatus
from crucible.store import Store, store_at
from crucible.supervision.heartbeat import FOLDER as HEARTBEATS
from crucible.supervision.heartbeat import SupervisorHeartbeat
from crucible.sweeps.records import SweepLimits, SweepSpec, SweepStatus
from crucible.sweeps.sweep import Sweep

REPORT_STEPS, CHECKPOINT_STEPS, EVALUATION_STEPS = 20, 500, 250
ROWS_IN_A_PIECE = 40


@dataclass(frozen=True)
class Machine:
    """Where an attempt runs, and what that means for it."""

    pool: str
    instance: str
    usd_per_hour: float
    seconds_per_step: float
    gpu_percent: float = 0.0
    """0: it trains on CPUs."""
    mtbf_seconds: float | None = None


SPOT = Machine("ec2-spot", "g5.xlarge", 0.3621, 0.42, 93, 7200)
ON_DEMAND = Machine("ec2-on-demand", "g5.xlarge", 1.006, 0.42, 93)
MODAL = Machine("modal", "A10G", 1.1016, 0.40, 91)
DOCKER = Machine("docker-gpu", "", 0.0, 0.55, 61)
HERE = Machine("local", "", 0.0, 1.9)


@dataclass
class Past:
    """Writes a job's records as if its attempts had run, on a clock of its own."""

    store: Store
    job_id: str
    began: datetime
    config: TrainConfig = field(default_factory=lambda: TrainConfig(max_iters=5000, n_layer=6, n_head=6, n_embd=384))
    project: str = "default"
    owner: str = ""
    floor: float = 1.46
    """Where the loss goes."""
    max_cost_usd: float | None = None

    def __post_init__(self) -> None:
        spec = JobSpec(
            job_id=self.job_id, config=self.config, project=self.project, owner=self.owner, created_at=self.began
        )
        self.job, self.now, self.random = Job.create(self.store, spec), self.began, random.Random(self.job_id)
        self.job.set_limits(Limits(max_cost_usd=self.max_cost_usd))
        self.committed = 0

    def attempt(
        self, machine: Machine, to_step: int, reason: str, *, saves: bool = True, wait: float = 40.0
    ) -> Attempt:
        """An attempt from the newest checkpoint to `to_step`; if it `saves`, it commits there, too."""
        self.machine, start = machine, self.committed
        number = len(self.job.attempts()) + 1
        self.launch = Launch(
            number=number,
            pool=machine.pool,
            instance=machine.instance,
            usd_per_hour=machine.usd_per_hour,
            mtbf_seconds=machine.mtbf_seconds,
            reason=reason,
            decided_at=self.now,
        )
        self.job.decide(self.launch)
        self.now += timedelta(seconds=wait)
        self.claimed = self.now
        attempt = self.job.attempt(number).take(Claim(number=number, instance=machine.instance, claimed_at=self.now))
        attempt.begin(Start(step=start, started_at=self.now))
        self.now += timedelta(seconds=9)
        lines = [json.dumps(row) for row in self._rows(start, to_step)]
        for sequence, first in enumerate(range(0, len(lines), ROWS_IN_A_PIECE)):
            piece = lines[first : first + ROWS_IN_A_PIECE]
            attempt.append_metrics(sequence, ("\n".join(piece) + "\n").encode())
        attempt.output.write(0, "\n".join(_printed(line) for line in lines).encode() + b"\n")
        commits = [step for step in range(start + 1, to_step + 1) if step % CHECKPOINT_STEPS == 0]
        for step in [*commits, *([to_step] if saves and to_step not in commits else [])][-3:]:
            self._commit(attempt, step)
        self.now += timedelta(seconds=(to_step - start) * machine.seconds_per_step)
        self.reached = to_step
        attempt.write_heartbeat(
            Heartbeat(
                sequence=7,
                phase="training",
                step=to_step,
                total_steps=self.config.max_iters,
                committed_step=self.committed,
                first_step_after_seconds=9.0,
                metrics={"train_loss": self._loss(to_step)},
                saving=_SAVING,
                at=self.now,
                **self._bill(),
            )
        )
        return attempt

    def end(self, attempt: Attempt, reason: EndReason, message: str, notice: str = "") -> None:
        """How the attempt ended."""
        notices = [Notification(source=self.machine.pool, reason=notice)] if notice else []
        attempt.end(
            Outcome(
                end_reason=reason,
                message=message,
                step=self.reached,
                committed_step=self.committed,
                first_step_after_seconds=9.0,
                saving=_SAVING,
                notifications=notices,
                saved=reason.saves,
                ended_at=self.now,
                **self._bill(),
            )
        )

    def status(self, state: JobState, reason: str = "") -> Past:
        """Where the job stands; a running one is supervised."""
        self.job.store.write_model("status.json", JobStatus(state=state, reason=reason, supervisor=1, at=self.now))
        if state is JobState.RUNNING:
            supervise(self.store, self.job_id)
        return self

    def _bill(self) -> dict[str, float]:
        seconds = (self.now - self.claimed).total_seconds()
        usd = seconds * self.machine.usd_per_hour / 3600
        return {"seconds": seconds, "cost_usd": usd, "usd_per_hour": self.machine.usd_per_hour}

    def _rows(self, start: int, end: int) -> list[dict[str, float]]:
        rows = []
        for step in range(start + REPORT_STEPS, end + 1, REPORT_STEPS):
            at = (self.now + timedelta(seconds=(step - start) * self.machine.seconds_per_step)).timestamp()
            row = {
                "step": step,
                "time": at,
                "train_loss": self._loss(step) + self.random.gauss(0, 0.03),
                "learning_rate": self._learning_rate(step),
                "tokens_per_second": self.random.gauss(1, 0.015) * 16384 / self.machine.seconds_per_step,
                **self._sample(),
            }
            if step % EVALUATION_STEPS == 0:
                row["val_loss"] = self._loss(step) + 0.04 + 0.02 * step / 5000
            rows.append(row)
        return rows

    def _sample(self) -> dict[str, float]:
        busy = self.machine.gpu_percent
        if not busy:
            return {"cpu_utilisation_percent": self.random.gauss(94, 2), "memory_gib": self.random.gauss(3.4, 0.05)}
        return {
            "gpu_utilisation_percent": min(100.0, self.random.gauss(busy, 3)),
            "gpu_memory_gib": self.random.gauss(14.2, 0.05),
            "gpu_power_watts": self.random.gauss(212, 6),
            "gpu_temperature_celsius": self.random.gauss(63, 1),
        }

    def _loss(self, step: int) -> float:
        return self.floor + 2.7 * math.exp(-step / 420) + 0.28 * math.exp(-step / 2600)

    def _learning_rate(self, step: int) -> float:
        warm, total, most = 100, self.config.max_iters, self.config.learning_rate
        if step < warm:
            return most * step / warm
        return most * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm))))

    def _commit(self, attempt: Attempt, step: int) -> None:
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent) / f"step-{step:08d}"
            folder.mkdir()
            (folder / "model.safetensors").write_bytes(bytes(430_000))
            state = {"step": step, "val_loss": self._loss(step) + 0.05}
            (folder / "state.json").write_text(json.dumps(state))
            checkpoint = Checkpoints(self.job).commit(attempt, folder)
        when = self.now + timedelta(seconds=(step - self.committed) * self.machine.seconds_per_step)
        key = f"checkpoints/{checkpoint.name}/manifest.json"
        self.job.store.write_model(key, checkpoint.model_copy(update={"committed_at": when}))
        self.committed = step


_SAVING = {"interval_seconds": 96.0, "stall_seconds": 0.31, "durable_seconds": 3.8, "bytes": 128_900_000.0}


def _printed(line: str) -> str:
    row = json.loads(line)
    return f"step {row['step']}: loss {row['train_loss']:.4f}, {row['tokens_per_second']:,.0f} tokens/s"


def supervise(store: Store, subject: str) -> None:
    """A heartbeat of somebody who supervises it."""
    record = SupervisorHeartbeat(flow_run_id=f"sample-{subject}", subject=subject, server="none", at=now(), sequence=1)
    store.write_model(f"{HEARTBEATS}/sample-{subject}.json", record)


def five_attempts(store: Store, job_id: str, began: datetime) -> Past:
    """A job that moved four times and was trained to its end."""
    past = Past(store, job_id, began, owner="ada", project="shakespeare", max_cost_usd=3.0)
    attempt = past.attempt(SPOT, 1240, "first attempt")
    past.end(attempt, EndReason.INTERRUPTED, "interrupted", "the machine goes in 120 s")
    attempt = past.attempt(SPOT, 2010, "attempt 1 was interrupted: another machine of ec2-spot", saves=False, wait=75)
    past.end(attempt, EndReason.LOST, "no sign of life for 60 s")
    attempt = past.attempt(SPOT, 2480, "attempt 2 was lost: another machine of ec2-spot", wait=110)
    past.end(attempt, EndReason.INTERRUPTED, "interrupted", "the machine goes in 120 s")
    attempt = past.attempt(MODAL, 4100, "no spot capacity: modal is the cheapest that is ready", wait=12)
    past.end(attempt, EndReason.INTERRUPTED, "interrupted", "the sandbox reaches its lifetime in 300 s")
    attempt = past.attempt(SPOT, 5000, "spot is back and cheaper", wait=60)
    past.end(attempt, EndReason.COMPLETED, "completed")
    return past.status(JobState.COMPLETED, "trained to the end")


def running(store: Store, job_id: str, machine: Machine, to_step: int, project: str, owner: str) -> Past:
    """A job in its first attempt, whose clock stands at this moment."""
    began = now() - timedelta(seconds=to_step * machine.seconds_per_step + 55)
    past = Past(store, job_id, began, owner=owner, project=project, max_cost_usd=2.0 if machine.usd_per_hour else None)
    past.attempt(machine, to_step, "first attempt: the cheapest offer that meets the deadline", saves=False)
    return past.status(JobState.RUNNING, "supervised")


def sweep(store: Store, name: str, values: Sequence[float]) -> Sweep:
    """A running search over learning rates, some of whose trials were stopped early."""
    began = now() - timedelta(minutes=50)
    config = TrainConfig(max_iters=2000)
    spec = SweepSpec.model_validate(
        {
            "sweep_id": name,
            "space": {"learning_rate": {"choice": list(values)}},
            "sampler": "grid",
            "schedule": "asha",
            "seed": 1,
            "ladder": [500, 1000, 2000],
            "parallelism": 3,
            "reduction_factor": 2,
            "pool": "ec2-spot",
            "config": config.model_dump(),
            "owner": "grace",
            "project": "shakespeare",
            "created_at": began,
        }
    )
    made = Sweep.create(store, spec)
    made.set_limits(SweepLimits(max_trials=len(values), max_cost_usd=5.0))
    for number, value in enumerate(values, start=1):
        record = made.record_trial(number, {"learning_rate": value})
        distance = abs(math.log10(value) + 3)
        past = Past.__new__(Past)
        past.store, past.job_id, past.began = store, record.job_id, began
        past.config, past.floor = config, 1.5 + 0.25 * distance
        past.job, past.now, past.random = Job(store, record.job_id), began, random.Random(number)
        past.committed = 0
        rungs = [500, 1000, 2000][: 3 if distance < 0.35 else 2 if distance < 0.8 else 1]
        for rung in rungs:
            attempt = past.attempt(SPOT, rung, f"trained to step {rung}")
            reason = EndReason.COMPLETED if rung == 2000 else EndReason.PAUSED
            past.end(attempt, reason, reason.label)
    made.set_status(SweepStatus(state=JobState.RUNNING, reason="3 trials at a time on ec2-spot"))
    supervise(store, name)
    return made


def make(store: Store) -> None:
    """All of them."""
    running(store, "shakespeare-large", SPOT, 3100, "shakespeare", "ada")
    running(store, "ablation-no-dropout", MODAL, 900, "ablations", "grace")
    running(store, "notebook-try", HERE, 160, "default", "ada")
    five_attempts(store, "shakespeare-spot", now() - timedelta(hours=7))
    wide = TrainConfig(max_iters=5000, n_layer=12, n_head=12, n_embd=768, learning_rate=6e-4, dropout=0.1)
    capped = Past(store, "gpt2-small-try", now() - timedelta(hours=26), wide, owner="grace", project="ablations")
    capped.max_cost_usd, capped.floor = 1.0, 1.9
    capped.job.set_limits(Limits(max_cost_usd=1.0))
    attempt = capped.attempt(ON_DEMAND, 3380, "a deadline that spot cannot meet")
    capped.end(attempt, EndReason.BUDGET, "the cost cap of $1.00 is reached")
    capped.status(JobState.BUDGET_STOP, "the cost cap of $1.00 is reached; everything is saved")
    finished = Past(store, "baseline", now() - timedelta(hours=50), owner="ada", project="shakespeare", floor=1.62)
    attempt = finished.attempt(DOCKER, 5000, "first attempt")
    finished.end(attempt, EndReason.COMPLETED, "completed")
    finished.status(JobState.COMPLETED, "trained to the end")
    sweep(store, "rates", [1e-4, 2e-4, 3e-4, 6e-4, 1e-3, 2e-3, 6e-3, 2e-2])


if __name__ == "__main__":
    make(store_at(sys.argv[1]))
