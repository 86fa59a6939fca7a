"""What a checkpoint in the store is: its name, its manifest, and which of several is the best.

jobs/<job>/checkpoints/step-00001200.attempt-0002/<files>
                                                  manifest.json   written last: without it there is no checkpoint
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import Field, field_validator

from crucible.contract import OUTPUT_OF_STEP, step_name
from crucible.jobs.records import Record, now

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
MODELS = "models"
"""Evaluated models and their cards lie in folders of this, named by their step."""


class StoredFile(Record):
    """One file of a checkpoint."""

    name: str
    size: int
    sha256: str

    @field_validator("name")
    @classmethod
    def _stays_below(cls, name: str) -> str:
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{name!r} would lie outside the checkpoint's folder")
        return name


class Checkpoint(Record):
    """The manifest: everything known of one commit."""

    fix = "delete the manifest: the checkpoint then counts as never committed, and the one before it is taken"

    job_id: str
    attempt: int
    step: int
    files: list[StoredFile]
    state: dict[str, Any] = Field(default_factory=dict)
    """What the workload wrote into `state.json`: metrics, config digest, environment."""
    committed_at: datetime = Field(default_factory=now)

    @property
    def name(self) -> str:
        return f"{step_name(self.step)}.attempt-{self.attempt:04d}"

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def has_output(self) -> bool:
        """Whether it is the last one of a finished script: its outputs, and what it saved last."""
        return OUTPUT_OF_STEP in self.state

    @property
    def shown_step(self) -> int:
        """The step as people know it. The commit with a script's outputs has a number of its own, the next one."""
        step = self.state.get(OUTPUT_OF_STEP)
        return step if isinstance(step, int) and not isinstance(step, bool) else self.step

    @property
    def val_loss(self) -> float | None:
        """Validation loss in nats per token at this step, when the workload reported a finite one."""
        return self._loss("val_loss")

    @property
    def compared_loss(self) -> float | None:
        """The validation loss by which checkpoints are compared: the estimate over the same batches for each of them,
        where the workload reports it beside a `val_loss` that it measured more thoroughly at the end."""
        estimate = self._loss("estimated_val_loss")
        return self.val_loss if estimate is None else estimate

    def _loss(self, name: str) -> float | None:
        value = self.state.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)


def best_checkpoint(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest validation loss, the later of two equals; None when none was scored."""
    scored = [(c.compared_loss, -c.step, c) for c in checkpoints if c.compared_loss is not None]
    return min(scored, key=lambda entry: entry[:2])[2] if scored else None


def step_and_attempt(name: str) -> tuple[int, int] | tuple[None, None]:
    """What the name of a stored checkpoint's folder says; two None for a folder that is something else."""
    match = re.fullmatch(r"step-(\d{8,})\.attempt-(\d{4,})", name)
    return (int(match[1]), int(match[2])) if match else (None, None)
