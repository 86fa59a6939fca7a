"""Faults that stop something where it stands and let it go on later: a laptop that sleeps, a machine that is moved.

Whoever wakes up finds that the job went on without it, and must not harm its successor. A pause can strike an attempt
in training, or at any moment between its claim and its first step; the moment is drawn from the drill's seed.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import psutil

from crucible.errors import CrucibleError
from crucible.rehearsal.drill.faults import Fault, claimed_and_restoring
from crucible.rehearsal.drill.scene import Scene, kill

LONGEST_PAUSE_SECONDS = 180.0
"""What was paused wakes after this long whatever happens, so that nothing is left standing."""

Wake = Callable[[], object]
Freeze = Callable[[Scene], Wake | None]
"""Stop the current attempt; returns what wakes that very attempt, or None when there is nothing to stop."""


def pauses(freeze: Freeze, what: str) -> list[Fault]:
    """The pauses of a pool whose attempts `freeze` stops; `what` it stops, as in "SIGSTOP to the agent"."""

    def pause_attempt(scene: Scene) -> bool:
        attempt = scene.attempt
        if attempt is None or (wake := freeze(scene)) is None:
            return False
        successor = scene.job.attempt(attempt.number + 1)
        _wake_later(wake, lambda: successor.read_start() is not None)
        return True

    def pause_while_it_starts(scene: Scene) -> bool:
        time.sleep(scene.moment_of_starting())
        return pause_attempt(scene)

    return [
        Fault("pause-agent", f"{what}, and on when its successor has begun", pause_attempt),
        Fault(
            "pause-in-start",
            f"{what} while it restores or starts, and on when its successor has begun",
            pause_while_it_starts,
            ready=claimed_and_restoring,
            look_seconds=0.005,
            before_training=True,
        ),
        PAUSE_SUPERVISOR,
    ]


def _pause_supervisor(scene: Scene) -> bool:
    """It stands still until another one has been started in its place; then it wakes and must step aside."""
    before, supervisor = scene.job.read_newest_supervisor(), scene.supervisor()
    if before is None or supervisor is None or (wake := stop_process(supervisor)) is None:
        return False

    def replaced() -> bool:
        newest = scene.job.read_newest_supervisor()
        return newest is not None and newest.number > before.number

    _wake_later(wake, replaced)
    return True


PAUSE_SUPERVISOR = Fault(
    "pause-supervisor",
    "SIGSTOP to the supervising flow, SIGCONT when another one has taken over",
    _pause_supervisor,
    ends_attempt=False,
)


def freeze_agent(scene: Scene) -> Wake | None:
    """SIGSTOP to the agent, as a process of this machine."""
    agent = scene.agent()
    return stop_process(agent) if agent else None


def stop_process(process: psutil.Process) -> Wake | None:
    """SIGSTOP; returns what sends SIGCONT to this process and no other that got its number."""
    if not kill(process, signal.SIGSTOP):
        return None
    return lambda: process.is_running() and kill(process, signal.SIGCONT)


def _wake_later(wake: Wake, until: Callable[[], bool]) -> None:
    """Wake it once `until` holds, or after `LONGEST_PAUSE_SECONDS`."""

    def wait_and_wake() -> None:
        deadline = time.monotonic() + LONGEST_PAUSE_SECONDS
        with suppress(CrucibleError):  # a record that cannot be read now: wake it, whatever it finds
            while time.monotonic() < deadline and not until():
                time.sleep(0.25)
        with suppress(Exception):  # whoever replaced it may have removed it, each pool with an error of its own
            wake()

    threading.Thread(target=wait_and_wake, name="wake", daemon=True).start()
