"""One thing that may go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What is cleaned up."""

    CHECKPOINTS = "checkpoints"
    LOGS = "logs"
    PACKAGES = "packages"
    UPLOADS = "uploads"
    SHARED = "shared"
    SCRATCH = "scratch"


@dataclass(frozen=True)
class Removal:
    """What would go, why, and how."""

    kind: Kind
    name: str
    bytes: int
    why: str
    remove: Callable[[], bool]
    """Removes it; False when it is needed after all, because somebody went on with the job meanwhile."""
