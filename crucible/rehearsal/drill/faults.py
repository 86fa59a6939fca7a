"""What a drill does to a run on this machine: each fault waits for its moment, then strikes real processes."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from crucible.contract import PARTIAL_SUFFIX
from crucible.errors import CrucibleError
from crucible.rehearsal.drill.scene import Scene, kill

NOTICE_SECONDS = 30.0
"""How far ahead a rehearsed reclaim is announced. EC2 gives 120 s; the drill need not wait for what is not used."""
LONGEST_PAUSE_SECONDS = 180.0
"""A paused process wakes after this long whatever happens, so that nothing is left standing."""
MOMENT_SECONDS = 10.0
"""How long a strike waits for the next save or upload; some come by while training goes on."""


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
    before_training: bool = False
    """It strikes before the attempt has begun to train, which leaves it without a commit of its own."""
    with_notice: bool = False
    """The attempt has the time to save: it must lose no step at all."""
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


def _pause_agent(scene: Scene) -> bool:
    """The agent stands still until its successor has begun; then it wakes and must stop by itself."""
    attempt, agent = scene.attempt, scene.agent()
    if attempt is None or agent is None:
        return False
    successor = scene.job.attempt(attempt.number + 1)
    return _pause(agent, lambda: successor.read_start() is not None)


def _pause_supervisor(scene: Scene) -> bool:
    """It stands still until another one has been started in its place; then it wakes and must step aside."""
    before, supervisor = scene.job.read_newest_supervisor(), scene.supervisor()
    if before is None or supervisor is None:
        return False

    def replaced() -> bool:
        newest = scene.job.read_newest_supervisor()
        return newest is not None and newest.number > before.number

    return _pause(supervisor, replaced)


def _pause(process: psutil.Process, until: Callable[[], bool]) -> bool:
    """SIGSTOP, and SIGCONT once it is time, or after `LONGEST_PAUSE_SECONDS`; False when the process is gone."""

    def wake() -> None:
        deadline = time.monotonic() + LONGEST_PAUSE_SECONDS
        with suppress(CrucibleError):  # a record that cannot be read now: wake it, whatever it finds
            while time.monotonic() < deadline and not until():
                time.sleep(0.25)
        if process.is_running():  # not another one that got its number
            kill(process, signal.SIGCONT)

    if not kill(process, signal.SIGSTOP):
        return False
    threading.Thread(target=wake, name="wake", daemon=True).start()
    return True


def _announce(scene: Scene) -> bool:
    scene.announce_reclaim(NOTICE_SECONDS)
    return True


def _restart_server(scene: Scene) -> bool:
    scene.restart_server()
    return True


def _claimed_and_restoring(scene: Scene) -> bool:
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
        ready=_claimed_and_restoring,
        look_seconds=0.005,
        before_training=True,
    ),
    Fault(
        "kill-supervisor",
        "SIGKILL to the supervising flow",
        lambda scene: kill(scene.supervisor()),
        ends_attempt=False,
    ),
    Fault("pause-agent", "SIGSTOP to the agent, SIGCONT when its successor has begun", _pause_agent),
    Fault(
        "pause-in-restore",
        "SIGSTOP to the agent while it restores, SIGCONT when its successor has begun",
        _pause_agent,
        ready=_claimed_and_restoring,
        look_seconds=0.005,
        before_training=True,
    ),
    Fault(
        "pause-supervisor",
        "SIGSTOP to the supervising flow, SIGCONT when another one has taken over",
        _pause_supervisor,
        ends_attempt=False,
    ),
    Fault("restart-server", "the Prefect server is killed and started again", _restart_server, ends_attempt=False),
]
