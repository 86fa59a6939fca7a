"""The states of an attempt, the events that reach it, and what follows: one pure function.

    claiming → restoring → preparing → training → stopping → committing → ended

`crucible.agent.attempt` owns the state, feeds it the events that its threads post, and carries out the actions.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from crucible.agent.notices import Notice
from crucible.agent.plan import WorkloadCommand
from crucible.agent.workload import WorkloadEnd
from crucible.checkpoints.manifest import Checkpoint
from crucible.errors import FencedOut, StoreUnavailable

SAVE_SECONDS = 120.0
"""How long a workload may take to save without a deadline."""
LEAST_SECONDS = 4.0
"""What is left at least when a notice comes, whatever the clocks say."""


class Phase(StrEnum):
    """What an attempt is doing; heartbeats show it."""

    CLAIMING = "claiming"
    RESTORING = "restoring"
    PREPARING = "preparing"
    TRAINING = "training"
    STOPPING = "stopping"
    COMMITTING = "committing"
    ENDED = "ended"


class Action(StrEnum):
    """What the owner of the state does after a transition."""

    RESTORE = "restore the newest commit"
    PREPARE = "prepare the machine"
    START = "start the workload"
    ASK_TO_STOP = "ask the workload to save and stop"
    KILL = "kill the workload"
    FINISH_UPLOADS = "carry the last checkpoint to the store"
    RECORD = "record the outcome"


@dataclass(frozen=True)
class Claimed:
    """The attempt is this process's."""


@dataclass(frozen=True)
class Restored:
    """The newest commit is here, and the start is on record."""

    step: int
    folder: Path | None


@dataclass(frozen=True)
class Prepared:
    """The machine is ready for this command."""

    command: WorkloadCommand


@dataclass(frozen=True)
class Noticed:
    """A notice arrived: from a source, a stop request, a limit, or an interrupt in the calling thread."""

    notice: Notice
    kill_at: float = math.inf
    """Monotonic seconds at which the workload must be gone, so that the last checkpoint still gets through."""
    ends_at: float = math.inf
    """Monotonic seconds at which the machine goes; infinite where that is not known."""


@dataclass(frozen=True)
class DeadlinePassed:
    """The time of `kill_at` (training) or `ends_at` (committing) is up."""


@dataclass(frozen=True)
class Fenced:
    """Another attempt has taken over, or this one was given up."""

    error: FencedOut


@dataclass(frozen=True)
class WorkloadEnded:
    """The workload's process is gone."""

    end: WorkloadEnd


@dataclass(frozen=True)
class Committed:
    """A checkpoint is in the store, and counts."""

    checkpoint: Checkpoint
    seconds: float
    """What the upload took."""


@dataclass(frozen=True)
class Uploaded:
    """Everything that the workload left is carried, or given up with this error."""

    failure: Exception | None = None


@dataclass(frozen=True)
class Failed:
    """A step of the agent itself failed: restoring, preparing or starting."""

    error: Exception


Event = (
    Claimed | Restored | Prepared | Noticed | DeadlinePassed | Fenced | WorkloadEnded | Committed | Uploaded | Failed
)


@dataclass(frozen=True)
class State:
    """All that decides how an attempt goes on and how it ends."""

    phase: Phase = Phase.CLAIMING
    notice: Notice | None = None
    """The first notice that says stop; a later one can only bring the deadline nearer."""
    kill_at: float = math.inf
    ends_at: float = math.inf
    end: WorkloadEnd | None = None
    fenced: FencedOut | None = None
    start_step: int = 0
    committed_step: int = 0
    failure: Exception | None = None
    """Why the agent could not restore, prepare or start."""
    uncommitted: Exception | None = None
    """Why the last checkpoint could not be committed."""


_BEFORE_TRAINING = (Phase.CLAIMING, Phase.RESTORING, Phase.PREPARING)
_WITH_WORKLOAD = (Phase.TRAINING, Phase.STOPPING)


def transition(state: State, event: Event) -> tuple[State, Action | None]:
    """The state after an event, and what to do about it. Late events, of a step that was given up, change nothing."""
    match event:
        case Claimed() if state.phase is Phase.CLAIMING:
            return replace(state, phase=Phase.RESTORING), Action.RESTORE
        case Restored(step) if state.phase is Phase.RESTORING:
            return replace(state, phase=Phase.PREPARING, start_step=step, committed_step=step), Action.PREPARE
        case Prepared() if state.phase is Phase.PREPARING:
            return replace(state, phase=Phase.TRAINING), Action.START
        case Noticed(notice, kill_at, ends_at) if notice.stop and state.phase is not Phase.ENDED:
            stopping = replace(
                state,
                notice=state.notice or notice,
                kill_at=min(state.kill_at, kill_at),
                ends_at=min(state.ends_at, ends_at),
            )
            if state.phase in _BEFORE_TRAINING:  # nothing to save
                return replace(stopping, phase=Phase.ENDED), Action.RECORD
            if state.phase is Phase.TRAINING:
                return replace(stopping, phase=Phase.STOPPING), Action.ASK_TO_STOP
            # While the last checkpoint is on its way, its deadline may have come nearer.
            return stopping, Action.FINISH_UPLOADS if state.phase is Phase.COMMITTING else None
        case DeadlinePassed() if state.phase is Phase.STOPPING:
            return replace(state, kill_at=math.inf), Action.KILL
        case DeadlinePassed() if state.phase is Phase.COMMITTING:
            late = StoreUnavailable("the machine's time was up before it had reached the store")
            return replace(state, phase=Phase.ENDED, uncommitted=late), Action.RECORD
        case Fenced(error) if state.phase in _WITH_WORKLOAD:
            return replace(state, phase=Phase.STOPPING, fenced=error), Action.KILL
        case Fenced(error) if state.phase is not Phase.ENDED:
            return replace(state, phase=Phase.ENDED, fenced=error), Action.RECORD
        case WorkloadEnded(end) if state.phase in _WITH_WORKLOAD:
            if state.fenced is not None:
                return replace(state, phase=Phase.ENDED, end=end), Action.RECORD
            return replace(state, phase=Phase.COMMITTING, end=end), Action.FINISH_UPLOADS
        case Committed(checkpoint) if state.phase is not Phase.ENDED:
            return replace(state, committed_step=checkpoint.step), None
        case Uploaded(failure) if state.phase is Phase.COMMITTING:
            return replace(state, phase=Phase.ENDED, uncommitted=failure), Action.RECORD
        case Failed(error) if state.phase is not Phase.ENDED:
            return replace(state, phase=Phase.ENDED, failure=error), Action.RECORD
    return state, None


def deadlines(notice: Notice, upload_seconds: float) -> Noticed:
    """The notice with its monotonic deadlines; `upload_seconds`: what the last upload took at most.

    A machine that is still there after its announced end has a clock that is ahead: some time is left all the same.
    """
    now = time.monotonic()
    if notice.deadline is None:
        return Noticed(notice, kill_at=now + SAVE_SECONDS)
    left = max(LEAST_SECONDS, notice.deadline - time.time())
    return Noticed(notice, now + left - min(1.5 * upload_seconds + 1.0, 0.6 * left), now + left)
