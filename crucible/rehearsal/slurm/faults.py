"""What a drill does to a run on Slurm: each fault finds the job of the current attempt and strikes there, through
Slurm's own commands or at its daemons."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from crucible.errors import ServiceError
from crucible.jobs.status import JobState, status_of
from crucible.rehearsal.drill.faults import PROCESS_FAULTS, Fault
from crucible.rehearsal.drill.pauses import freeze_agent, pauses
from crucible.rehearsal.drill.scene import Scene
from crucible.rehearsal.slurm.cluster import LocalCluster
from crucible.rehearsal.worker_process import WorkerProcess

SHORT_MINUTES = 1
SHORT_TRAINING_SECONDS = 45.0
"""About what a job with the time limit of a minute has for training."""
MORE_TRAINING_SECONDS = 20.0
"""For what takes its time while the training goes on."""
AWAY_SECONDS = 3.0
_ALSO_HERE = ("kill-workload", "kill-all")
_LOST_SECONDS = 90.0
_STATE_SECONDS = 120.0


@dataclass(frozen=True)
class Hands:
    """What the stage gives the faults to strike with."""

    cluster: LocalCluster
    worker: WorkerProcess
    let_live: Callable[[int | None], None]
    """Give the jobs that are still to come so many minutes; None: what the pool gives."""
    continue_job: Callable[[str], object]
    """`crucible jobs continue`."""


def slurm_faults(hands: Hands) -> list[Fault]:
    """All faults of the pool, for a drill's plan to choose from."""
    cluster = hands.cluster

    def on_job(strike: Callable[[str, str], object]) -> Callable[[Scene], bool]:
        def find_and_strike(scene: Scene) -> bool:
            if (found := running_job(cluster, scene)) is None:
                return False
            strike(*found)
            return True

        return find_and_strike

    def lose_node(_job_id: str, node: str) -> None:
        cluster.kill_node(node)
        threading.Thread(target=_bring_back, args=(cluster, node), name="node", daemon=True).start()

    def reach_time_limit(scene: Scene) -> bool:
        """The limit is fixed when a job is submitted: this one makes way for a short one, which is let be."""
        if (found := running_job(cluster, scene)) is None:
            return False
        if time_limit(cluster, found[0]) != f"00:{SHORT_MINUTES:02d}:00":
            hands.let_live(SHORT_MINUTES)
            cluster.preempt(found[1])
            return False
        hands.let_live(None)
        attempt = scene.attempt
        deadline = time.monotonic() + SHORT_MINUTES * 60 + _LOST_SECONDS
        while attempt is not None and attempt.read_outcome() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        return True

    def cancel_and_continue(scene: Scene) -> bool:
        """A person's scancel cancels the job for good; the person then continues it."""
        if (found := running_job(cluster, scene)) is None:
            return False
        cluster.call("scancel", found[0])
        deadline = time.monotonic() + _STATE_SECONDS
        while (status := status_of(scene.job)) is None or status.state is JobState.RUNNING:
            if time.monotonic() > deadline:
                raise ServiceError("the job was not cancelled by scancel")
            time.sleep(0.2)
        if status.state is JobState.COMPLETED:  # it was done in the same moment
            return False
        if status.state is not JobState.CANCELLED:
            raise ServiceError(f"after scancel the job is {status.state}")
        hands.continue_job(scene.job.job_id)
        while (now := status_of(scene.job)) is not None and now.state is not JobState.RUNNING:
            if time.monotonic() > deadline:
                raise ServiceError("the cancelled job was not continued")
            time.sleep(0.2)
        return True

    def restart_controller(_: Scene) -> bool:
        cluster.kill_controller()
        time.sleep(AWAY_SECONDS)
        cluster.start_controller()
        return True

    def restart_worker(_: Scene) -> bool:
        hands.worker.kill()
        hands.worker.start()
        return True

    def end_job_without_worker(job_id: str, node: str) -> None:
        hands.worker.kill()
        cluster.preempt(node)
        hands.worker.start()

    return [
        Fault("restart-worker", "SIGKILL to the worker, and a new one", restart_worker, ends_attempt=False),
        Fault(
            "preempt-without-worker",
            "SIGKILL to the worker, the job preempted meanwhile, then a new worker",
            on_job(end_job_without_worker),
            with_notice=True,
        ),
        Fault("lose-node", "the job's node dies", on_job(lose_node)),
        Fault("preempt", "Slurm preempts the job", on_job(lambda _, node: cluster.preempt(node)), with_notice=True),
        Fault(
            "scancel",
            "somebody cancels the job, and continues it",
            cancel_and_continue,
            with_notice=True,
            training_seconds=MORE_TRAINING_SECONDS,
        ),
        Fault(
            "restart-controller",
            "SIGKILL to Slurm's controller, and a new one",
            restart_controller,
            ends_attempt=False,
            training_seconds=MORE_TRAINING_SECONDS,
        ),
        *(fault for fault in PROCESS_FAULTS if fault.name in _ALSO_HERE),
        Fault(
            "time-limit",
            "the job comes to its time limit",
            reach_time_limit,
            with_notice=True,
            training_seconds=SHORT_TRAINING_SECONDS,
        ),
        *pauses(freeze_agent, "SIGSTOP to the agent"),
    ]


def running_job(cluster: LocalCluster, scene: Scene) -> tuple[str, str] | None:
    """Id and node of the current attempt's job."""
    with contextlib.suppress(ServiceError):  # the controller is just being replaced
        running = (job for job in cluster.jobs(f"crucible-{scene.job.job_id}") if job[1] == "RUNNING")
        return next(((job_id, node) for job_id, _, node in running), None)
    return None


def time_limit(cluster: LocalCluster, job_id: str) -> str:
    """Of a job, as Slurm prints it (`00:01:00`)."""
    shown = cluster.call("scontrol", "show", "job", job_id)
    return next((part.partition("=")[2] for part in shown.split() if part.startswith("TimeLimit=")), "")


def _bring_back(cluster: LocalCluster, node: str) -> None:
    """Once Slurm has noticed that it is gone."""
    deadline = time.monotonic() + _LOST_SECONDS
    with contextlib.suppress(ServiceError):
        while time.monotonic() < deadline and any(job[2] == node for job in cluster.jobs()):
            time.sleep(0.5)
        cluster.start_node(node)
