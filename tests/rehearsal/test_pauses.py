"""What the drill pauses stands still until its successor has begun, and no longer."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from random import Random

import psutil

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.retention import retain
from crucible.jobs.records import Heartbeat, Start
from crucible.local.state import Home
from crucible.rehearsal.aws.containers import Container
from crucible.rehearsal.drill.pauses import pauses
from crucible.rehearsal.drill.scene import Scene
from crucible.store import Store
from tests.checkpoints.committing import commit
from tests.faults.small_jobs import claimed, new_job, running
from tests.waiting import until


def test_a_frozen_container_stands_still_as_a_whole_and_goes_on(tmp_path: Path) -> None:
    child = "import time; print(flush=True); time.sleep(600)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    container = Container("c", [sys.executable, "-c", script], {}, tmp_path, log := tmp_path / "log")
    try:
        first = psutil.Process(container.pid)
        until(lambda: log.exists() and log.read_bytes())  # before it, the first process waits for its child in vfork
        everything = [first, *first.children()]
        assert len(everything) == 2
        container.freeze()
        until(lambda: all(process.status() == psutil.STATUS_STOPPED for process in everything))
        container.thaw()
        until(lambda: not any(process.status() == psutil.STATUS_STOPPED for process in everything))
    finally:
        container.kill()


def test_an_attempt_is_paused_at_a_drawn_moment_of_its_start_until_its_successor_has_begun(
    store: Store, tmp_path: Path
) -> None:
    job = new_job(store)
    running(job, 1).write_heartbeat(Heartbeat(sequence=1, phase="training", first_step_after_seconds=0.05))
    claimed(job, 2)
    woken = threading.Event()
    faults = {fault.name: fault for fault in pauses(lambda scene: woken.set, "SIGSTOP")}

    def scene(seed: int) -> Scene:
        return Scene(job, Home(tmp_path), Random(seed), lambda: None, lambda seconds: None)

    drawn = [scene(seed).moment_of_starting() for seed in range(20)]
    assert drawn == [scene(seed).moment_of_starting() for seed in range(20)]
    assert len(set(drawn)) == 20
    assert all(0 <= seconds < 0.05 for seconds in drawn)
    fault = faults["pause-in-start"]
    assert fault.ready(scene(1))
    assert fault.strike(scene(1))
    assert not woken.wait(0.5)
    claimed(job, 3).begin(Start(step=0))
    assert woken.wait(120)


def test_the_first_commit_counts_though_retention_has_deleted_it(store: Store, tmp_path: Path) -> None:
    """A machine so slow that a commit comes every few steps was never struck."""
    job = new_job(store)
    attempt = running(job, 1)
    scene = Scene(job, Home(tmp_path), Random(1), lambda: None, lambda seconds: None, steps_to_wait=50)
    for step in range(10, 60, 10):
        attempt.write_heartbeat(Heartbeat(sequence=step, phase="training", step=step))
        commit(attempt, tmp_path, step)
        assert not scene.training()
        retain(Checkpoints(job), keep_last=1)
    attempt.write_heartbeat(Heartbeat(sequence=60, phase="training", step=60))
    assert scene.training()
