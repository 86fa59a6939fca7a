"""The drill itself: train a job while a seeded plan interrupts it, and compare it with an undisturbed one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from crucible.checkpoints.commits import Checkpoints
from crucible.jobs.job import Attempt, Job
from crucible.jobs.status import JobState, status_of
from crucible.rehearsal.drill.faults import Fault
from crucible.rehearsal.drill.plan import make_plan
from crucible.rehearsal.drill.scene import Scene
from crucible.rehearsal.drill.stage import Stage
from crucible.rehearsal.drill.workload import ScriptFindings, Trainer, Workload

STANDSTILL_SECONDS = 600.0
"""So long a drill waits while nothing moves: no new attempt, phase, step or commit. Machines are slow under load."""
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
    """What a drill found. It passes when every fault struck, no committed step was lost and the weights are equal.

    A script of your own passes without equal weights: how exactly it resumes is its own affair, and is reported.
    """

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
    script: ScriptFindings | None = None
    """Where the drill trained a script of your own."""

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
        if self.script is not None:
            found += self.script.failures
        elif self.weights_sha256 != self.undisturbed_sha256:
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
        workload: Workload | None = None,
    ) -> None:
        """`workload`: what is trained; Crucible's own trainer unless given."""
        self.stage, self.seed, self._on_change = stage, seed, on_change
        self.workload = workload or Trainer()
        self.plan = make_plan(stage.faults, kills, seed)
        self.strikes = [Strike(fault.name, fault.description) for fault in self.plan]
        self.phase = "setting up"
        self.rng = Random(seed)
        self.job = Job(stage.store, f"drill-{seed}")

    def run(self) -> DrillResult:
        """Raises `CrucibleError` when the drill itself cannot be carried out."""
        undisturbed_seconds = self.workload.prepare(self.stage, self.plan, self.seed, self._say)
        self._say("starting the job")
        began = time.monotonic()
        self.workload.start(self.stage, self.job.job_id, 3 * len(self.plan) + 5)
        scene = Scene(self.job, self.stage.home, self.rng, self.stage.restart_server, self.stage.announce_reclaim)
        for fault, strike in zip(self.plan, self.strikes, strict=True):
            if not self._strike(scene, fault, strike):
                break
        self._say("waiting for the job's end")
        self._until(lambda: self._final_state() is not None)
        return self._result(began, undisturbed_seconds)

    def _strike(self, scene: Scene, fault: Fault, strike: Strike) -> bool:
        """Wait for the fault's moment, strike, and see the attempt end; False when its moment never came."""
        self._say(f"waiting to strike: {fault.description}")
        self.workload.draw_moment(scene, self.rng)
        before = _newest(self.job)
        if not self._until(lambda: self._final_state() is not None or fault.ready(scene), fault.look_seconds):
            return False
        struck_attempt = _newest(self.job) or before
        if struck_attempt is None or self._final_state() is not None:
            return False
        strike.attempt = struck_attempt.number
        strike.committed_step = self._committed_step()
        scene.reached_step = self.workload.reached_step(self.job)
        if not fault.strike(scene):
            return self._strike(scene, fault, strike)
        strike.struck_at = time.time()
        strike.committed_step = max(strike.committed_step, self._committed_step())
        self._say(f"struck: {fault.description}")
        if fault.ends_attempt:
            self._until(lambda: struck_attempt.read_outcome() is not None)
            outcome = struck_attempt.read_outcome()
            strike.end_reason = str(outcome.end_reason) if outcome else "none on record"
            strike.step = max(outcome.step if outcome else 0, scene.reached_step)
            if fault.with_notice and outcome and self.workload.saves_on_notice:
                strike.committed_step = max(strike.committed_step, outcome.step)
            self.stage.replace_machine()
        else:
            strike.end_reason = WENT_ON
        return True

    def _committed_step(self) -> int:
        newest = next(iter(Checkpoints(self.job).list()), None)
        return newest.step if newest else 0

    def _result(self, began: float, undisturbed_seconds: float) -> DrillResult:
        attempts = {attempt.number: attempt for attempt in self.job.attempts()}
        for strike in self.strikes:
            later = (attempts[number] for number in sorted(attempts) if number > strike.attempt)
            # One on an unfit machine ends before it restores anything.
            following, start = next(((a, start) for a in later if (start := a.read_start())), (None, None))
            if strike.struck_at is None or following is None or start is None or strike.end_reason == WENT_ON:
                continue
            strike.resumed_step = start.step
            strike.steps_repeated = max(0, strike.step - start.step)
            strike.committed_steps_lost = max(0, strike.committed_step - start.step)
            strike.seconds_to_new_step = _first_step_after(following, strike.struck_at)
        ending = self.workload.ending(self.job)
        if findings := ending.findings:
            findings.most_steps_repeated = max((strike.steps_repeated for strike in self.strikes), default=0)
            findings.most_saves_lost = findings.most_steps_repeated // max(1, findings.interval_steps)
        return DrillResult(
            seed=self.seed,
            pool=str(self.stage.parameters.get("pool", "local")),
            store=self.stage.store.uri.split(":")[0],
            kills=len(self.plan),
            struck=sum(strike.struck_at is not None for strike in self.strikes),
            attempts=len(attempts),
            committed_steps_lost=sum(strike.committed_steps_lost for strike in self.strikes),
            steps_repeated=sum(strike.steps_repeated for strike in self.strikes),
            steps=self.workload.total_steps,
            seconds=round(time.monotonic() - began, 1),
            undisturbed_seconds=round(undisturbed_seconds, 1),
            weights_sha256=ending.sha256,
            undisturbed_sha256=self.workload.undisturbed_sha256,
            state=str(self._final_state() or "not ended"),
            pools=[launch.pool for attempt in attempts.values() if (launch := attempt.read_launch())],
            cost_usd=round(self.job.cost_usd(), 6),
            left_running=self.stage.still_running(),
            strikes=self.strikes,
            script=findings,
        )

    def _final_state(self) -> JobState | None:
        status = status_of(self.job)
        return status.state if status and status.state is not JobState.RUNNING else None

    def _until(self, holds: Callable[[], bool], look_seconds: float = 0.25) -> bool:
        """Wait until it holds, however long, while the job gets on; False once it stands still."""
        moved, seen, looked = time.monotonic(), self._progress(), 0.0
        while time.monotonic() < moved + STANDSTILL_SECONDS:
            if holds():
                return True
            if time.monotonic() - looked > 0.5:
                looked = time.monotonic()
                self.workload.look(self.job)
                self._on_change(self)
                if (now := self._progress()) != seen:
                    moved, seen = time.monotonic(), now
            time.sleep(look_seconds)
        return False

    def _progress(self) -> tuple[object, ...]:
        """What changes while the job gets on."""
        newest = _newest(self.job)
        beat = newest.read_heartbeat() if newest else None
        how_far = (beat.phase, beat.step, beat.committed_step) if beat else ()
        return (newest.number if newest else 0, *how_far)

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
