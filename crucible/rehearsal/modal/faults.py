"""What a drill does to a run on Modal: each fault finds the sandbox of the current attempt and strikes there.

Nothing here goes by process ids on record: a sandbox has process ids of its own, which mean other processes outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from crucible.agent.sources import LIFETIME_MARGIN_SECONDS
from crucible.contract import Variable
from crucible.pools.modal.configuration import LONGEST_LIFETIME_SECONDS
from crucible.rehearsal.drill.faults import Fault
from crucible.rehearsal.drill.pauses import Wake, pauses
from crucible.rehearsal.drill.scene import Scene
from crucible.rehearsal.modal.cloud import SandboxView
from crucible.rehearsal.modal.fake import FakeModal
from crucible.rehearsal.worker_process import WorkerProcess

SHORT_LIFE = 1.5
"""From the start of a short-lived sandbox to its notice, in times of what the one before needed to get to a commit."""
SHORT_TRAINING_SECONDS = 10.0
"""About what is left of that for training."""

LetLive = Callable[[float | None], None]
"""Give the sandboxes that are still to come so many seconds of life; None: what the pool gives."""


def modal_faults(modal: FakeModal, worker: WorkerProcess, let_live: LetLive) -> list[Fault]:
    """All faults of the pool, for a drill's plan to choose from."""

    def on_sandbox(strike: Callable[[str], None]) -> Callable[[Scene], bool]:
        def find_and_strike(scene: Scene) -> bool:
            sandbox = _sandbox(modal, scene)
            if sandbox is None:
                return False
            strike(sandbox.id)
            return True

        return find_and_strike

    def freeze(scene: Scene) -> Wake | None:
        sandbox = _sandbox(modal, scene)
        if sandbox is None:
            return None
        modal.freeze(sandbox.id)
        return lambda: modal.thaw(sandbox.id)

    def restart_worker(_: Scene) -> bool:
        worker.kill()
        worker.start()
        return True

    def lose_host_without_worker(sandbox_id: str) -> None:
        worker.kill()
        modal.lose_host(sandbox_id)
        worker.start()

    def reach_lifetime(scene: Scene) -> bool:
        """The lifetime is fixed when a sandbox is made: this one makes way for a short-lived one, which is let be."""
        sandbox = _sandbox(modal, scene)
        if sandbox is None:
            return False
        if sandbox.timeout_seconds == LONGEST_LIFETIME_SECONDS:
            let_live(SHORT_LIFE * (time.time() - sandbox.started_at) + LIFETIME_MARGIN_SECONDS)
            modal.preempt(sandbox.id)
            return False
        let_live(None)
        notice_at = float(sandbox.env[Variable.MACHINE_ENDS_AT]) - LIFETIME_MARGIN_SECONDS
        time.sleep(max(0.0, notice_at - time.time()))
        return True

    return [
        Fault("preempt", "Modal preempts the sandbox", on_sandbox(modal.preempt), with_notice=True),
        Fault("lose-host", "the sandbox's machine is lost", on_sandbox(modal.lose_host)),
        Fault(
            "reach-lifetime",
            "the sandbox comes near the end of its lifetime",
            reach_lifetime,
            with_notice=True,
            training_seconds=SHORT_TRAINING_SECONDS,
        ),
        Fault("out-of-memory", "the sandbox runs out of memory", on_sandbox(modal.run_out_of_memory)),
        Fault("freeze", "the sandbox freezes", on_sandbox(modal.freeze)),
        Fault("restart-worker", "SIGKILL to the worker, and a new one", restart_worker, ends_attempt=False),
        Fault(
            "lose-host-and-worker",
            "SIGKILL to the worker, the machine lost meanwhile, then a new worker",
            on_sandbox(lose_host_without_worker),
        ),
        *pauses(freeze, "the sandbox freezes"),
    ]


def _sandbox(modal: FakeModal, scene: Scene) -> SandboxView | None:
    """The running sandbox of the current attempt."""
    attempt = scene.attempt
    if attempt is None:
        return None
    tags = {"job": scene.job.job_id, "attempt": str(attempt.number)}
    return next((view for view in modal.running() if tags.items() <= view.tags.items()), None)
