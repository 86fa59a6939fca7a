"""What a drill does to a run on this machine: each fault waits for its moment, then strikes real processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from crucible.contract import PARTIAL_SUFFIX
from crucible.rehearsal.drill.scene import Scene, kill

NOTICE_SECONDS = 30.0
"""How far ahead a rehearsed reclaim is announced. EC2 gives 120 s; the drill need not wait for what is not used."""
MOMENT_SECONDS = 10.0
"""How long a strike waits for the next save or upload; some come by while training goes on."""


@dataclass(frozen=True)
class Fault:
    """One way to interrupt a run."""

    name: str
    description: str
    strike: Callable[[Scene], bool]
    """Do it; False when the moment has passed and it must be tried again."""
    ready: Callable[[Scene], bool] = Scene.training
    look_seconds: float = 0.1
    """Time between two looks at whether it is ready; moments that pass quickly need quick looks."""
    ends_attempt: bool = True
    before_training: bool = False
    """It strikes before the attempt has begun to train, which leaves it without a commit of its own."""
    with_notice: bool = False
    """The attempt has the time to save: it must lose no step at all."""
    always: bool = False
    """Every plan has it, however few faults it has."""
    comes_last: bool = False
    """What it does shows in how the job goes on, if nothing else strikes then."""
    training_seconds: float = 0.0
    """How long the training goes on for this fault's sake alone; the job is made so much longer."""


def _strike_all(scene: Scene) -> bool:
    return _kill_both(scene.agent(), scene.workload())


def _kill_both(agent: psutil.Process | None, workload: psutil.Process | None) -> bool:
    struck = kill(agent)
    kill(workload)
    return struck


def _announce(scene: Scene) -> bool:
    scene.announce_reclaim(NOTICE_SECONDS)
    return True


def make_unfit(scene: Scene) -> bool:
    """End the attempt; the machine of the next one has a broken GPU, that of the one after it has not."""
    unfit_file(scene.home.root).write_text("GPU 0: rehearsed memory errors\n", encoding="utf-8")
    return _strike_all(scene)


def unfit_file(home: Path) -> Path:
    """What makes the machine of the next attempt unfit to train (`crucible.agent.health`)."""
    return home / "unfit-machine"


def _restart_server(scene: Scene) -> bool:
    scene.restart_server()
    return True


def claimed_and_restoring(scene: Scene) -> bool:
    """Something is there to restore, and the attempt that has just claimed the job is at it."""
    attempt = scene.attempt
    return (
        attempt is not None and attempt.number > 1 and attempt.read_claim() is not None and attempt.read_start() is None
    )


def _strike_in_save(scene: Scene) -> bool:
    workload, checkpoints = scene.workload(), scene.local_checkpoints()
    return _comes(lambda: any(checkpoints.glob(f"*{PARTIAL_SUFFIX}"))) and kill(workload)


def _strike_in_upload(scene: Scene) -> bool:
    agent, workload, upload_under_way = scene.agent(), scene.workload(), scene.upload_watch()
    return _comes(upload_under_way) and _kill_both(agent, workload)


def _comes(holds: Callable[[], bool]) -> bool:
    """Wait for a moment that passes within milliseconds: whoever looks must have looked everything else up before."""
    deadline = time.monotonic() + MOMENT_SECONDS
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.001)
    return held


PROCESS_FAULTS = [
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
    Fault("kill-in-save", "SIGKILL to the trainer while it writes a checkpoint", _strike_in_save),
    Fault(
        "kill-in-upload",
        "SIGKILL to agent and trainer while a checkpoint is on its way to the store",
        _strike_in_upload,
    ),
    Fault(
        "kill-in-restore",
        "SIGKILL to the agent while it restores",
        lambda scene: kill(scene.agent()),
        ready=claimed_and_restoring,
        look_seconds=0.005,
        before_training=True,
    ),
    Fault(
        "kill-supervisor",
        "SIGKILL to the supervising flow",
        lambda scene: kill(scene.supervisor()),
        ends_attempt=False,
    ),
    Fault("restart-server", "the Prefect server is killed and started again", _restart_server, ends_attempt=False),
]
