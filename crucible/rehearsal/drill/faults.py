"""What a drill does to a run on this machine: each fault waits for its moment, then strikes real processes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

from crucible.rehearsal.drill.scene import Scene, kill

NOTICE_SECONDS = 30.0
"""How far ahead a rehearsed reclaim is announced. EC2 gives 120 s; the drill need not wait for what is not used."""


@dataclass(frozen=True)
class Fault:
    """One way to interrupt a run."""

    name: str
    words: str
    strike: Callable[[Scene], bool]
    """Do it; False when the moment has passed and it must be tried again."""
    ready: Callable[[Scene], bool] = Scene.training
    look_seconds: float = 0.1
    """Time between two looks at whether it is ready; moments that pass quickly need quick looks."""
    ends_attempt: bool = True
    with_notice: bool = False
    """The attempt has the time to save: it must lose no step at all."""


def _strike_all(scene: Scene) -> bool:
    workload = scene.workload()
    struck = kill(scene.agent())
    kill(workload)
    return struck


def _announce(scene: Scene) -> bool:
    scene.announce_reclaim(NOTICE_SECONDS)
    return True


def _restart_server(scene: Scene) -> bool:
    scene.restart_server()
    return True


def _claimed_and_restoring(scene: Scene) -> bool:
    """Something is there to restore, and the attempt that has just claimed the job is at it."""
    attempt = scene.attempt
    return attempt is not None and attempt.number > 1 and attempt.claim is not None and attempt.start is None


def _saving(scene: Scene) -> bool:
    return scene.training() and any(scene.partial_folders())


def _uploading(scene: Scene) -> bool:
    return bool(scene.uploads_without_manifest())


LOCAL_FAULTS = [
    Fault("notice", "the machine gets an EC2 reclaim notice", _announce, with_notice=True),
    Fault(
        "sigterm",
        "SIGTERM to the flow run",
        lambda scene: kill(scene.agent(), signal.SIGTERM),
        with_notice=True,
    ),
    Fault("kill-workload", "SIGKILL to the trainer", lambda scene: kill(scene.workload())),
    Fault("kill-agent", "SIGKILL to the agent", lambda scene: kill(scene.agent())),
    Fault("kill-all", "SIGKILL to agent and trainer at once", _strike_all),
    Fault(
        "kill-in-save",
        "SIGKILL to the trainer while it writes a checkpoint",
        lambda scene: any(scene.partial_folders()) and kill(scene.workload()),
        ready=_saving,
        look_seconds=0.002,
    ),
    Fault(
        "kill-in-upload",
        "SIGKILL to agent and trainer while a checkpoint is on its way to the store",
        _strike_all,
        ready=_uploading,
        look_seconds=0.002,
    ),
    Fault(
        "kill-in-restore",
        "SIGKILL to the agent while it restores",
        lambda scene: kill(scene.agent()),
        ready=_claimed_and_restoring,
        look_seconds=0.005,
    ),
    Fault(
        "kill-supervisor",
        "SIGKILL to the supervising flow",
        lambda scene: kill(scene.supervisor()),
        ends_attempt=False,
    ),
    Fault("restart-server", "the Prefect server is killed and started again", _restart_server, ends_attempt=False),
]
