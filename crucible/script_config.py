"""A training script of your own: what it runs, where it saves, how it resumes, and what it reports.

`crucible.yaml` holds these settings, and a job's record keeps them. Everything but the command has a default that suits
a script which follows `docs/workload-contract.md` by itself.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from crucible.settings import MOST, Settings, invalid

__all__ = ["CheckpointFiles", "MetricsSource", "ScriptConfig"]

MetricsFormat = Literal["contract", "nanogpt", "huggingface", "lightning", "jsonl", "tensorboard", "pattern"]


class CheckpointFiles(Settings):
    """The file or folder that a script saves by itself, and how a copy of it becomes a checkpoint."""

    model_config = ConfigDict(title="Checkpoint files")

    path: str = Field(
        min_length=1,
        description="What the script writes, relative to its working directory: a file, a folder, or a glob such as "
        "out/checkpoint-*.",
    )
    step_from: str = Field(
        "",
        description="Regular expression over printed lines with one group, the step. The newest match before a save "
        "is its step. Empty: read from the file, else counted in seconds.",
    )
    restore_to: str = Field("", description="Where the checkpoint is put before a restart. Empty: where it was saved.")

    @field_validator("step_from")
    @classmethod
    def _one_group(cls, value: str) -> str:
        return _pattern("step_from", value, groups=1)

    @field_validator("path", "restore_to")
    @classmethod
    def _inside(cls, value: str) -> str:
        return inside("checkpoint path", value)


class MetricsSource(Settings):
    """Where a script's metrics come from."""

    model_config = ConfigDict(title="Metrics")

    format: MetricsFormat = Field(
        "contract",
        description="contract: JSON lines in CRUCIBLE_METRICS_FILE. nanogpt, huggingface, lightning: what these print. "
        "pattern: your own regular expression over printed lines. jsonl, tensorboard: files that the script writes.",
    )
    pattern: str = Field(
        "",
        description="For pattern: named groups; `step` is the step, every other group is a metric of that name.",
    )
    path: str = Field("", description="For jsonl and tensorboard: file or folder, relative to the working directory.")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.format == "pattern":
            _pattern("pattern", self.pattern, named="step")
        elif self.pattern:
            raise invalid(f"pattern = {self.pattern!r} is only used with format = pattern; set format: pattern")
        if self.format in ("jsonl", "tensorboard"):
            if not self.path:
                raise invalid(f"path is empty; name the file or folder that holds the {self.format} metrics")
            inside("metrics path", self.path)
        elif self.path:
            raise invalid(f"path = {self.path!r} is only used with format = jsonl or tensorboard; remove it")
        return self


class ScriptConfig(Settings):
    """A workload of your own: any command."""

    model_config = ConfigDict(title="Script")

    command: list[str] = Field(min_length=1, description="The command line, program first.")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="What the script is configured with; shown in reports, not interpreted."
    )
    checkpoint: CheckpointFiles | None = Field(
        None, description="Where the script saves by itself. Empty: it follows the workload contract."
    )
    resume: list[str] = Field(
        default_factory=list, description="Arguments that are appended only when a checkpoint was restored."
    )
    sigterm: bool | None = Field(
        None,
        description="Whether the script saves and exits on SIGTERM. Empty: yes if it follows the contract, no if it "
        "has checkpoint files.",
    )
    metrics: MetricsSource = MetricsSource()
    total_steps: int | None = Field(
        None, ge=1, le=MOST, description="How many steps the whole training has, for progress and time left."
    )
    output: list[str] = Field(
        default_factory=list,
        description="Files, folders or globs that are kept when the script is done, relative to its working directory.",
    )

    @field_validator("output")
    @classmethod
    def _outputs_inside(cls, value: list[str]) -> list[str]:
        return [inside("output", path) for path in value]

    @property
    def handles_sigterm(self) -> bool:
        """Whether a stop request reaches the script as SIGTERM."""
        return self.checkpoint is None if self.sigterm is None else self.sigterm


def inside(field: str, path: str) -> str:
    """`path`, if it stays inside the working directory; raises a validation error that says so otherwise."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise invalid(f"{field} = {path!r} leaves the working directory; give a path inside of it")
    return path


def _pattern(field: str, value: str, groups: int | None = None, named: str | None = None) -> str:
    if not value and named is None:
        return value
    try:
        compiled = re.compile(value)
    except re.error as error:
        raise invalid(f"{field} = {value!r} is not a regular expression: {error}") from None
    if groups is not None and compiled.groups != groups:
        raise invalid(f"{field} = {value!r} has {compiled.groups} groups; it needs exactly {groups}: (\\d+)")
    if named is not None and named not in compiled.groupindex:
        raise invalid(f"{field} = {value!r} has no group named {named}; write (?P<{named}>\\d+)")
    return value
