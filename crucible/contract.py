"""What an agent and its workload share: exit codes, variables, folder and file names, and three small file formats.

A stage on a machine is two processes. The agent starts the workload, sets the variables named here, and reads what the
workload leaves in its files. `docs/workload-contract.md` describes the same contract. Both sides import this module, so
it needs nothing but the standard library: no torch, no store, no pydantic.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

EXIT_DONE = 0
EXIT_SAVED = 75
"""`EX_TEMPFAIL` of sysexits.h: stopped and saved, start me again."""
EXIT_UNFIT = 69
"""`EX_UNAVAILABLE` of sysexits.h: this machine is not fit, start me on another one; the last line printed says why.
Every code but these three is a failure."""


class Variable(StrEnum):
    """Environment variables of the contract."""

    JOB_ID = "CRUCIBLE_JOB_ID"
    ATTEMPT = "CRUCIBLE_ATTEMPT"
    CHECKPOINT_DIR = "CRUCIBLE_CHECKPOINT_DIR"
    """Where the workload saves: a local folder. A checkpoint is a folder that is renamed into place when whole."""
    RESUME_FROM = "CRUCIBLE_RESUME_FROM"
    """The checkpoint folder to resume from; not set on a fresh start."""
    METRICS_FILE = "CRUCIBLE_METRICS_FILE"
    """Where the workload appends its metrics, one JSON object a line (`metrics_line`)."""
    CONTROL_FILE = "CRUCIBLE_CONTROL_FILE"
    """Where the agent publishes how often to save (`Control`); it changes while the workload runs."""
    STOP_REASON_FILE = "CRUCIBLE_STOP_REASON_FILE"
    """Where the agent says why it sends SIGTERM (`StopReason`)."""
    EVALUATE = "CRUCIBLE_EVALUATE"
    """The checkpoint folder that an evaluation looks at; not set for a training."""
    STOP_AT_STEP = "CRUCIBLE_STOP_AT_STEP"
    """The step at which the workload saves and exits with 75."""
    SWEEP = "CRUCIBLE_SWEEP"
    """The sweep that the workload is a trial of; not set elsewhere."""

    # Between the agents of an attempt's nodes and the workload's launcher (`crucible.agent.torchrun`)
    NODES = "CRUCIBLE_NODES"
    """How many machines train together; a pool sets what it has started, the agent what is used. Not set: one."""
    NODE_RANK = "CRUCIBLE_NODE_RANK"
    """Which of them this one is, from 0; the first one owns the attempt."""
    NODE_ADDRESS = "CRUCIBLE_NODE_ADDRESS"
    """Where the other nodes reach this one. Not set: the address of the interface that leads to the network."""
    NODE_PROCESSES = "CRUCIBLE_NODE_PROCESSES"
    """How many processes of the workload each node runs: one per GPU."""
    RENDEZVOUS = "CRUCIBLE_RENDEZVOUS"
    """HOST:PORT/ID where the nodes' launchers meet."""

    # Between a pool, the container's entrypoint and the agent
    STOP_FILE = "CRUCIBLE_STOP_FILE"
    """Where the container's entrypoint passes a stop signal on to the agent (`StopReason`)."""
    STOP_GRACE_SECONDS = "CRUCIBLE_STOP_GRACE_SECONDS"
    """How long the pool waits between its stop signal and SIGKILL."""
    MACHINE_ENDS_AT = "CRUCIBLE_MACHINE_ENDS_AT"
    """Unix seconds at which the pool takes the machine away whatever happens (Modal: 24 hours after its start)."""
    LIFETIME_MARGIN_SECONDS = "CRUCIBLE_LIFETIME_MARGIN_SECONDS"
    """How long before `MACHINE_ENDS_AT` to stop and save; two minutes unless the pool says otherwise."""


DEFAULT_STOP_GRACE_SECONDS = 30.0
"""Without `STOP_GRACE_SECONDS`: as ECS's and Docker's own defaults are at most."""

ADAPTER_LINE = "[crucible] "
"""What begins the adapter's own lines among those of the script."""
STATE_FILE = "state.json"
"""In a checkpoint folder: what the workload says about it (a JSON object: step, losses, …). Optional for scripts."""
OUTPUT_OF_STEP = "output_of_step"
"""In the state of a finished script's last checkpoint, which has its outputs: the last step that it reached."""
METRICS_FILE = "metrics.jsonl"
PARTIAL_SUFFIX = ".partial"
"""Marks a folder or file that is still being written."""


# Checkpoint folders


def step_name(step: int) -> str:
    """The name of a checkpoint's folder: `step-00001200`."""
    return f"step-{step:08d}"


def step_of(folder: Path) -> int | None:
    """The step in the name of a whole checkpoint folder (`step-00001200` or `step-1200`); None for any other name."""
    match = re.fullmatch(r"step-([0-9]+)", folder.name)
    return int(match[1]) if match else None


def finished_folders(parent: Path) -> list[Path]:
    """The whole checkpoint folders in `parent`, lowest step first; none if `parent` does not exist."""
    try:
        steps = [(step, path) for path in parent.iterdir() if (step := step_of(path)) is not None and path.is_dir()]
    except FileNotFoundError:
        return []
    return [path for _, path in sorted(steps)]


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's contents. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Files


@dataclass(frozen=True)
class Control:
    """What the agent asks of a running workload."""

    checkpoint_seconds: float
    """Seconds between the starts of two saves."""

    def write(self, path: Path) -> None:
        """Replace the file atomically. Raises OSError."""
        _replace(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Control:
        """Raises OSError if there is no such file, ValueError if its content is not a control file's."""
        seconds = _object(path).get("checkpoint_seconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise ValueError(f"{path}: checkpoint_seconds = {seconds!r} must be a number of seconds, 0 or more")
        return cls(float(seconds))


@dataclass(frozen=True)
class StopReason:
    """Why a process is asked to stop, and by when."""

    source: str
    reason: str
    deadline: float | None = None
    """Unix seconds at which the machine goes; None where it is not known."""

    def write(self, path: Path) -> None:
        """Replace the file atomically. Raises OSError."""
        _replace(path, json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> StopReason:
        """Raises OSError if there is no such file, ValueError if its content is not a stop reason."""
        found = _object(path)
        source, reason, deadline = (found.get(name) for name in ("source", "reason", "deadline"))
        if not isinstance(source, str) or not isinstance(reason, str):
            raise ValueError(f"{path}: source and reason must be texts")
        if deadline is not None and (isinstance(deadline, bool) or not isinstance(deadline, int | float)):
            raise ValueError(f"{path}: deadline = {deadline!r} must be Unix seconds or null")
        return cls(source, reason, None if deadline is None else float(deadline))


def metrics_line(step: int, time: float, figures: Mapping[str, float]) -> str:
    """One line of the metrics file, its line end included. `time`: Unix seconds."""
    return json.dumps({"time": time, "step": step, **figures}) + "\n"


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, not {content!r}")
    return content


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
