"""A script of your own under a drill: `crucible drill --script FOLDER`.

The undisturbed run is a job like the disturbed one, on the same pool, so that both have the same libraries. From it
come the script's own interval between saves and the final files that the disturbed run is compared with.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from crucible.adapter.restoring import OUTPUT
from crucible.adapter.taking import FILES
from crucible.adapter.whole import is_whole
from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import Checkpoint
from crucible.checkpoints.restore import fetch
from crucible.contract import STATE_FILE
from crucible.errors import ConfigError, CrucibleError, ServiceError
from crucible.jobs.job import Job
from crucible.jobs.status import JobState, JobStatus, status_of
from crucible.local.run_script import DEPLOYMENT, plan_run, with_image
from crucible.rehearsal.drill.faults import Fault
from crucible.rehearsal.drill.running_script import RunningScript
from crucible.rehearsal.drill.scene import Scene, kill
from crucible.rehearsal.drill.stage import Stage
from crucible.rehearsal.drill.tensors import difference
from crucible.rehearsal.drill.workload import Ending, Log, ScriptFindings
from crucible.resources import Resources
from crucible.run_config import FILE, RunConfig

SECONDS_PER_FAULT = 2.0
"""Between the commit that a fault waits for and the strike, besides a pause of up to one of the script's intervals."""
LOOK_SECONDS = 0.5
STANDSTILL_SECONDS = 600.0
"""So long the undisturbed run may stay at one step: a first image and a first import take their time."""
IN_SAVE_SECONDS = 60.0
"""How long a fault waits for the script's next save, at least."""
_LOSES_MACHINE = ("kill-all", "docker-kill", "lose-host", "reclaim")
"""The fault of each pool that takes everything away at once."""
_NOT_WITHOUT_PROCESSES = ("kill-workload", "kill-in-save")


class OwnScript:
    """The script of a folder, with the folder's crucible.yaml."""

    undisturbed_sha256 = ""
    total_steps = 0

    def __init__(self, folder: Path, command: Sequence[str] = ()) -> None:
        """`command`: what to run instead of the file's `drill:` or `command:`. Raises `ConfigError`."""
        config = RunConfig.from_folder(folder, {})
        changes: dict[str, Any] = {"evaluate": None, "resources": Resources(), "store": "default", "finish_by": ""}
        changes |= {"max_cost_usd": None, "max_hours": None}
        if command:
            changes |= {"command": list(command), "total_steps": None}
        elif config.drill is not None:
            changes |= {"command": config.drill.command, "total_steps": config.drill.total_steps}
        changes["env"] = {"OMP_NUM_THREADS": "1", **config.env}  # a drill keeps the other cores busy
        self._folder, self._config = folder, config.model_copy(update=changes)
        self._script = self._config.script()
        self._findings = ScriptFindings(folder.resolve().name, 0, 0.0)
        self._undisturbed: Job | None = None
        self._seen: dict[str, int] = {}
        """Commits that were looked at → their steps."""

    @property
    def saves_on_notice(self) -> bool:
        return self._script.handles_sigterm

    def faults(self, of_pool: Sequence[Fault]) -> list[Fault]:
        """The pool's faults, as far as a script has what they strike, and two that strike while it writes its file."""
        loses_machine = next(fault for fault in of_pool if fault.name in _LOSES_MACHINE)
        kept = []
        for fault in of_pool:
            if fault.name == "kill-workload":
                kept.append(replace(fault, description="SIGKILL to the script", strike=self._kill_script))
            elif fault.name not in _NOT_WITHOUT_PROCESSES:
                kept.append(replace(fault, description=fault.description.replace("trainer", "script")))
        while_it_saves = "while it writes its checkpoint"
        return [
            Fault("kill-in-save", f"SIGKILL to the script {while_it_saves}", self._in_save(_kill_frozen), always=True),
            Fault(
                "lose-all-in-save",
                "everything is lost while the script writes its checkpoint",
                self._in_save(lambda scene, running: loses_machine.strike(scene)),
                always=True,
            ),
            *kept,
        ]

    def _kill_script(self, scene: Scene) -> bool:
        running = _running(scene.job)
        return running is not None and kill(running.process)

    def _in_save(self, strike: Callable[[Scene, RunningScript], bool]) -> Callable[[Scene], bool]:
        def freeze_and_strike(scene: Scene) -> bool:
            running = _running(scene.job)
            wait = max(IN_SAVE_SECONDS, 4 * self._findings.interval_seconds)
            if running is None or not running.freeze_in_save(self._script.checkpoint, wait):
                return False
            scene.reached_step = running.reached_step()
            return strike(scene, running)

        return freeze_and_strike

    def prepare(self, stage: Stage, plan: Sequence[Fault], seed: int, log: Log) -> float:
        job = self._undisturbed = Job(stage.store, f"drill-{seed}-undisturbed")
        log("the undisturbed run")
        self.start(stage, job.job_id, 1)
        seconds = self._await_undisturbed(job, log)
        final = _newest(job)
        if final is None:
            raise ConfigError(f"{self._folder}: the script saved nothing; name its checkpoint: or output: in {FILE}")
        self.total_steps = final.step
        self.undisturbed_sha256 = _digest(final)
        self._measure(job)
        self._require_long_enough(plan)
        self._seen.clear()
        return seconds

    def start(self, stage: Stage, job_id: str, max_attempts: int) -> None:
        pool = str(stage.parameters["pool"])
        changes: dict[str, Any] = {"pool": pool, "max_attempts": max_attempts}
        if pool != "docker-gpu":  # a rehearsed cloud runs its tasks on this machine, in no image
            changes["dockerfile"] = "none"
        run = plan_run(self._config.model_copy(update=changes), self._folder, job_id)
        if run.dockerfile:
            run = with_image(run)
        run.packed.upload(stage.store)
        for name in self._script.secrets:
            stage.crucible("secret", "set", name)
        stage.prefect("deployment", "run", DEPLOYMENT, "--params", json.dumps(run.parameters()))

    def _await_undisturbed(self, job: Job, log: Log) -> float:
        """Until it is completed; returns the seconds of its attempt. Raises `ServiceError` for another end."""
        moved, seen = time.monotonic(), ("waiting for a machine", 0)
        while (status := _final(job)) is None:
            self.look(job)
            beat = job.attempt(1).read_heartbeat()
            if beat is not None and (beat.phase, beat.step) != seen:
                moved, seen = time.monotonic(), (beat.phase, beat.step)
                log(f"the undisturbed run: {beat.phase}, step {beat.step:,}")
            if time.monotonic() > moved + STANDSTILL_SECONDS:
                raise ServiceError(f"the undisturbed run stands still: {seen[0]}, step {seen[1]:,}")
            time.sleep(LOOK_SECONDS)
        self.look(job)
        if status.state is not JobState.COMPLETED:
            raise ServiceError(f"the undisturbed run ended as {status.state}: {status.reason}")
        outcome = job.attempt(1).read_outcome()
        return outcome.seconds if outcome else 0.0

    def _measure(self, job: Job) -> None:
        """The script's own interval, in steps and seconds."""
        steps = sorted({0, *self._seen.values()})
        gaps = [after - before for before, after in pairwise(steps) if after - before > 1]  # 1: the output's own
        outcome = job.attempt(1).read_outcome()
        seconds = outcome.saving.get("own_interval_seconds", 0.0) if outcome else 0.0
        self._findings.interval_steps = round(statistics.median(gaps)) if gaps else 0
        self._findings.interval_seconds = seconds

    def _require_long_enough(self, plan: Sequence[Fault]) -> None:
        """Every fault waits for a save of its attempt, and for up to one interval more."""
        interval, seconds = self._findings.interval_steps, self._findings.interval_seconds
        if not interval:
            raise ConfigError(f"{self._folder}: the script saved once only, so no fault could strike between two saves")
        waits = SECONDS_PER_FAULT * (len(plan) + 1) + sum(fault.training_seconds for fault in plan)
        there = self.total_steps // interval
        needed = 1.5 * (len(plan) + 1) + waits / max(seconds, 0.1)
        if there < needed:
            raise ConfigError(
                f"{self._folder}: the training is too short for {len(plan)} faults: it saves {there} times, every "
                f"{seconds:.1f} s, and needs about {needed:.0f} saves. Give it more steps, after -- or in drill: of "
                f"{FILE}, or ask for fewer --kills"
            )

    def draw_moment(self, scene: Scene, rng: Random) -> None:
        scene.seconds_to_wait = rng.uniform(0.0, 1.0) * self._findings.interval_seconds

    def reached_step(self, job: Job) -> int:
        running = _running(job)
        return running.reached_step() if running else 0

    def look(self, job: Job) -> None:
        """Read what is newly committed: whether its files are whole."""
        for checkpoint in Checkpoints(job).list():
            if checkpoint.name in self._seen:
                continue
            self._seen[checkpoint.name] = checkpoint.step
            with tempfile.TemporaryDirectory() as folder:
                problem = fetch(Checkpoints(job), checkpoint, Path(folder))
                if problem and checkpoint.name not in {kept.name for kept in Checkpoints(job).list()}:
                    continue  # retention was faster
                problem = problem or _not_whole(Path(folder) / FILES)
            self._findings.checkpoints_read += 1
            if problem:
                self._findings.broken.append(f"{checkpoint.name}: {problem}")

    def ending(self, job: Job) -> Ending:
        assert self._undisturbed is not None
        self.look(job)
        final, undisturbed, status = _newest(job), _newest(self._undisturbed), _final(job)
        if final is None or undisturbed is None or status is None or status.state is not JobState.COMPLETED:
            self._findings.difference = "it did not get to its end"
            return Ending("", self._findings)
        with tempfile.TemporaryDirectory() as here, tempfile.TemporaryDirectory() as there:
            for checkpoint, of, folder in ((final, job, here), (undisturbed, self._undisturbed, there)):
                if problem := fetch(Checkpoints(of), checkpoint, Path(folder)):
                    raise ServiceError(f"{of.job_id}/{checkpoint.name} cannot be read: {problem}")
                (Path(folder) / STATE_FILE).unlink(missing_ok=True)
            self._findings.difference = difference(Path(here), Path(there))
        self._findings.exact = not self._findings.difference
        return Ending(_digest(final), self._findings)


def _kill_frozen(_: Scene, running: RunningScript) -> bool:
    return kill(running.process)


def _running(job: Job) -> RunningScript | None:
    attempts = job.attempts()
    return RunningScript.find(job.job_id, attempts[-1].number) if attempts else None


def _newest(job: Job) -> Checkpoint | None:
    return next(iter(Checkpoints(job).list()), None)


def _final(job: Job) -> JobStatus | None:
    try:
        status = status_of(job)
    except CrucibleError:
        return None
    return status if status and status.state is not JobState.RUNNING else None


def _digest(checkpoint: Checkpoint) -> str:
    """Of the files that the script wrote, without what says when."""
    files = {file.name: file.sha256 for file in checkpoint.files if file.name != STATE_FILE}
    outputs: Mapping[str, str] = {n: s for n, s in files.items() if n.startswith(f"{OUTPUT}/")} or files
    return hashlib.sha256(json.dumps(sorted(outputs.items())).encode()).hexdigest()


def _not_whole(folder: Path) -> str:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and is_whole(path) is False and path.stat().st_size:
            return f"{path.name} is cut off"
        if path.is_file() and path.parent == folder and not path.stat().st_size:
            return f"{path.name} is empty"
    return ""
