"""Jobs with a past, written through the same records that the agent and the supervisor write."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import Checkpoint
from crucible.config import TrainConfig
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import Claim, EndReason, Heartbeat, JobSpec, Launch, Notification, Outcome, Start
from crucible.jobs.status import JobState, JobStatus
from crucible.store import Store

BEGAN = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECONDS_PER_STEP = 0.1
SAVING = {"interval_seconds": 38.0, "stall_seconds": 0.1, "durable_seconds": 1.5, "bytes": 100_100.0}


@dataclass
class Past:
    """Writes a job's records as if its attempts had run, on a clock of its own."""

    store: Store
    folder: Path
    job_id: str = "shakespeare"
    config: TrainConfig = field(default_factory=TrainConfig)
    now: datetime = BEGAN

    def __post_init__(self) -> None:
        self.job = Job.create(self.store, JobSpec(job_id=self.job_id, config=self.config, created_at=BEGAN))

    def attempt(
        self,
        start: int,
        reached: int,
        committed: Iterable[int],
        *,
        pool: str = "ec2-spot",
        usd_per_hour: float = 0.36,
        shift: float = 0.0,
        reason: str = "first attempt",
    ) -> Attempt:
        """An attempt that resumed from `start` and is at `reached`; `shift` is added to its losses."""
        number = len(self.job.attempts()) + 1
        self.launch = Launch(
            number=number,
            pool=pool,
            instance="g5.xlarge",
            usd_per_hour=usd_per_hour,
            mtbf_seconds=7200,
            reason=reason,
            decided_at=self.now,
        )
        self.job.decide(self.launch)
        self.claimed = self.now
        attempt = self.job.attempt(number).take(Claim(number=number, instance="g5.xlarge", claimed_at=self.now))
        attempt.begin(Start(step=start, started_at=self.now))
        self.pass_time(2.0)
        lines = []
        for step in range(start + 10, reached + 1, 10):
            row = {"step": step, "train_loss": loss(step) + shift, "tokens_per_second": 7680.0}
            row["time"] = (self.now + timedelta(seconds=(step - start) * SECONDS_PER_STEP)).timestamp()
            lines.append(json.dumps(row))
            if step % 250 == 0:
                lines.append(json.dumps({"step": step, "val_loss": loss(step) + 0.1 + shift}))
        for sequence in range(0, len(lines), 40):
            attempt.append_metrics(sequence // 40, ("\n".join(lines[sequence : sequence + 40]) + "\n").encode())
        self.pass_time((reached - start) * SECONDS_PER_STEP)
        self.checkpoints = [self.commit(attempt, step, shift) for step in committed]
        self.reached, self.committed = reached, max([start, *committed])
        self.beat(attempt)
        return attempt

    def beat(self, attempt: Attempt) -> None:
        seconds = (self.now - self.claimed).total_seconds()
        attempt.write_heartbeat(
            Heartbeat(
                sequence=1,
                phase="training",
                step=self.reached,
                total_steps=self.config.max_iters,
                committed_step=self.committed,
                seconds=seconds,
                cost_usd=seconds * self.launch.usd_per_hour / 3600,
                first_step_after_seconds=3.0,
                metrics={"train_loss": loss(self.reached)},
                saving=SAVING,
                at=self.now,
            )
        )

    def commit(self, attempt: Attempt, step: int, shift: float = 0.0) -> Checkpoint:
        folder = self.folder / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(bytes(100_000))
        (folder / "state.json").write_text(json.dumps({"step": step, "val_loss": loss(step) + 0.1 + shift}))
        return Checkpoints(self.job).commit(attempt, folder)

    def end(self, attempt: Attempt, reason: EndReason, message: str, decided_by: str = "agent") -> Outcome:
        """The agent's own word, or the supervisor's, who knows no more than the last heartbeat."""
        last = attempt.read_heartbeat()
        assert last
        by_agent = decided_by == "agent"
        seconds = (self.now - self.claimed).total_seconds() if by_agent else last.seconds
        notice = Notification(source="EC2", reason="the machine goes in 120 s")
        return attempt.end(
            Outcome(
                end_reason=reason,
                message=message,
                step=self.reached,
                committed_step=self.committed,
                seconds=seconds,
                cost_usd=seconds * self.launch.usd_per_hour / 3600,
                first_step_after_seconds=3.0 if by_agent else None,
                saving=SAVING if by_agent else {},
                notifications=[notice] if reason is EndReason.INTERRUPTED else [],
                decided_by=decided_by,
                ended_at=self.now,
            )
        )

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def status(self, state: JobState, reason: str = "") -> None:
        status = JobStatus(state=state, reason=reason, supervisor=1)
        self.job.store.write_json("status.json", status.model_dump(mode="json"))


def loss(step: float) -> float:
    """A loss that falls as losses do."""
    return 1.5 + 2.6 * math.exp(-step / 400)


def interrupted_twice(store: Store, folder: Path, job_id: str = "shakespeare") -> Past:
    """A job of 2000 steps: saved after a notice at 600, then lost at 1300 with 1200 committed, then run to its end."""
    past = Past(store, folder, job_id)
    first = past.attempt(0, 600, [300, 600])
    past.end(first, EndReason.INTERRUPTED, "spot reclaim")
    past.pass_time(30)
    second = past.attempt(600, 1300, [900, 1200], shift=0.5, reason="the attempt before was interrupted")
    past.pass_time(45)
    past.end(second, EndReason.LOST, "no sign of life for 45 s", decided_by="supervisor")
    past.pass_time(10)
    third = past.attempt(1200, 2000, [1600, 2000], pool="ec2-on-demand", usd_per_hour=1.0, reason="lost before")
    past.end(third, EndReason.COMPLETED, "done")
    past.status(JobState.COMPLETED, "done")
    return past
