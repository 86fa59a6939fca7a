"""What a drill does to a run on Modal: each fault finds the sandbox of the current attempt and strikes there.

Nothing here goes by process ids on record: a sandbox has process ids of its own, which mean other processes outside.
"""

from __future__ import annotations

from collections.abc import Callable

from crucible.rehearsal.drill.faults import Fault
from crucible.rehearsal.drill.scene import Scene
from crucible.rehearsal.modal.fake import FakeModal
from crucible.rehearsal.modal.worker_process import WorkerProcess


def modal_faults(modal: FakeModal, worker: WorkerProcess) -> list[Fault]:
    """All faults of the pool, for a drill's plan to choose from."""

    def on_sandbox(strike: Callable[[str], None]) -> Callable[[Scene], bool]:
        def find_and_strike(scene: Scene) -> bool:
            sandbox_id = _sandbox(modal, scene)
            if sandbox_id is None:
                return False
            strike(sandbox_id)
            return True

        return find_and_strike

    def restart_worker(_: Scene) -> bool:
        worker.kill()
        worker.start()
        return True

    def lose_host_without_worker(sandbox_id: str) -> None:
        worker.kill()
        modal.lose_host(sandbox_id)
        worker.start()

    return [
        Fault("preempt", "Modal preempts the sandbox", on_sandbox(modal.preempt), with_notice=True),
        Fault("lose-host", "the sandbox's machine is lost", on_sandbox(modal.lose_host)),
        Fault("reach-lifetime", "the sandbox's lifetime is over", on_sandbox(modal.reach_lifetime)),
        Fault("out-of-memory", "the sandbox runs out of memory", on_sandbox(modal.run_out_of_memory)),
        Fault("freeze", "the sandbox freezes", on_sandbox(modal.freeze)),
        Fault("restart-worker", "SIGKILL to the worker, and a new one", restart_worker, ends_attempt=False),
        Fault(
            "lose-host-and-worker",
            "SIGKILL to the worker, the machine lost meanwhile, then a new worker",
            on_sandbox(lose_host_without_worker),
        ),
    ]


def _sandbox(modal: FakeModal, scene: Scene) -> str | None:
    """The running sandbox of the current attempt."""
    attempt = scene.attempt
    if attempt is None:
        return None
    tags = {"job": scene.job.job_id, "attempt": str(attempt.number)}
    return next((view.id for view in modal.running() if tags.items() <= view.tags.items()), None)
