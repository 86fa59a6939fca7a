"""A training script of your own: what it runs, where it saves, how it resumes, and what it reports.

`crucible.yaml` holds these settings, and a job's record keeps them. Everything but the command has a default that suits
a script which follows `docs/workload-contract.md` by itself.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from crucible.settings import MOST, Settings, invalid, shown

__all__ = [
    "CheckpointFiles",
    "DrillRun",
    "EvaluateStage",
    "MetricsSource",
    "PreprocessStage",
    "ScriptConfig",
    "ScriptSettings",
    "secret_block",
]

MetricsFormat = Literal["contract", "nanogpt", "huggingface", "lightning", "jsonl", "tensorboard", "pattern"]


def split(field: str, line: str) -> list[str]:
    """A command line in its words, as a shell splits it; raises a validation error for an open quote."""
    try:
        return shlex.split(line)
    except ValueError as error:
        raise invalid(f"{field} = {shown(line)} cannot be split into words: {error}; close the quote") from None


def inside(field: str, path: str) -> str:
    """`path`, if it stays inside the working directory; raises a validation error that says so otherwise."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        raise invalid(f"{field} = {path!r} leaves the working directory; give a path inside of it")
    return path


def _words(value: Any, info: ValidationInfo) -> Any:
    return split(info.field_name or "command", value) if isinstance(value, str) else value


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _inside_all(value: list[str], info: ValidationInfo) -> list[str]:
    return [inside(info.field_name or "path", path) for path in value]


Words = Annotated[list[str], BeforeValidator(_words)]
"""A command line or a part of one: written as a text, or as a list."""
Several = Annotated[list[str], BeforeValidator(_several)]
"""A list, or its only entry alone."""
Paths = Annotated[Several, AfterValidator(_inside_all)]
"""The same for paths and globs in the working directory."""


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
        "is its step. Empty: from the file's name or content, else counted in seconds.",
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
    path: str = Field(
        "",
        description="For jsonl and tensorboard: file, folder or glob, relative to the working directory. For "
        "lightning: the CSVLogger's metrics.csv, where it is not at its usual place.",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.format == "pattern":
            _pattern("pattern", self.pattern, named="step")
        elif self.pattern:
            raise invalid(f"pattern = {self.pattern!r} is only used with format = pattern; set format: pattern")
        if self.format in ("jsonl", "tensorboard"):
            if not self.path:
                raise invalid(f"path is empty; name the file or folder that holds the {self.format} metrics")
        elif self.path and self.format != "lightning":
            raise invalid(f"path = {self.path!r} is only used with jsonl, tensorboard or lightning; remove it")
        if self.path:
            inside("metrics path", self.path)
        return self


class ScriptSettings(Settings):
    """All that describes a workload of your own besides its command."""

    model_config = ConfigDict(title="Script settings")

    settings: dict[str, Any] = Field(
        default_factory=dict, description="What the script is configured with; shown in reports, not interpreted."
    )
    checkpoint: CheckpointFiles | None = Field(
        None,
        title="Checkpoint",
        description="Where the script saves by itself. Empty: it follows the workload contract.",
    )
    resume: Words = Field(
        default_factory=list,
        description="Arguments that are appended only when a checkpoint was restored; {checkpoint} is its path.",
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
    torchrun: bool | None = Field(
        None,
        description="Whether torchrun starts the command, once for each GPU and node that resources ask for. Empty: "
        "yes where they ask for more than one, unless the command itself starts its processes.",
    )
    keep_checkpoints: int = Field(
        3, ge=1, le=100_000, description="How many of the newest checkpoints are kept, besides the best one."
    )
    output: Paths = Field(
        default_factory=list,
        description="Files, folders or globs that are kept when the script is done, relative to its working directory.",
    )
    reseed: bool = Field(
        False,
        description="Let a script that sets its seed at every start draw other random numbers after each restart: "
        "seeds given to torch, numpy and random are shifted.",
    )
    dependencies: str = Field(
        "",
        description="What is installed for the script: a requirements file of the folder, or none. Empty: uv.lock, "
        "requirements.txt or pyproject.toml, the first that is there; else Crucible's own environment.",
    )
    env: dict[str, str] = Field(default_factory=dict, description="Environment variables; kept in the job's record.")
    secrets: Several = Field(
        default_factory=list,
        description="Environment variables that are read on the script's machine: from the Prefect Secret block of "
        "that name (hf-token for HF_TOKEN), else from the machine's own environment. Never kept in a record.",
    )

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _only_a_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value

    @field_validator("metrics", mode="before")
    @classmethod
    def _only_a_format(cls, value: Any) -> Any:
        return {"format": value} if isinstance(value, str) else value

    @field_validator("env", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """YAML reads `DEBUG: 1` as a number, and a variable is always text."""
        if not isinstance(value, Mapping):
            return value
        numbers = {name: str(v) for name, v in value.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        return {**value, **numbers}

    @field_validator("env")
    @classmethod
    def _env_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            variable_name("env", name)
        return value

    @field_validator("secrets")
    @classmethod
    def _secret_names(cls, value: list[str]) -> list[str]:
        return [variable_name("secrets", name) for name in value]

    @field_validator("dependencies")
    @classmethod
    def _dependencies_inside(cls, value: str) -> str:
        return inside("dependencies", value) if value else value

    @property
    def handles_sigterm(self) -> bool:
        """Whether a stop request reaches the script as SIGTERM."""
        return self.checkpoint is None if self.sigterm is None else self.sigterm


class ScriptConfig(ScriptSettings):
    """A workload of your own: any command."""

    model_config = ConfigDict(title="Script")

    command: Words = Field(min_length=1, description="The command line, program first.")

    @property
    def starts_processes(self) -> bool:
        """Whether the command starts the processes of a training itself, so that torchrun is not put in front."""
        if self.torchrun is not None:
            return not self.torchrun
        first = self.command[0].rpartition("/")[2]
        module = self.command[2] if self.command[1:2] == ["-m"] and len(self.command) > 2 else ""
        return first in _LAUNCHERS or module.startswith(_LAUNCHER_MODULES)


_LAUNCHERS = {"torchrun", "accelerate", "deepspeed", "colossalai", "horovodrun", "mpirun", "mpiexec", "srun"}
_LAUNCHER_MODULES = ("torch.distributed.", "accelerate.", "deepspeed.")


class Stage(Settings):
    """A command beside the training, as a job of its own."""

    command: Words = Field(min_length=1, description="The command line, as a text or as a list.")
    output: Paths = Field(default_factory=list, description="Files, folders or globs of the stage to keep.")
    metrics: MetricsSource = MetricsSource()

    def script(self, trained: ScriptConfig) -> ScriptConfig:
        """The stage as a script of its own, in the environment of the one that trains."""
        return ScriptConfig(
            command=self.command,
            output=self.output,
            metrics=self.metrics,
            dependencies=trained.dependencies,
            env=trained.env,
            secrets=trained.secrets,
        )


class PreprocessStage(Stage):
    """What runs before the training, which finds its outputs in place."""

    model_config = ConfigDict(title="Preprocessing")

    pool: str = Field("", description="Where it runs. Empty: where the training runs.")


class EvaluateStage(Stage):
    """What runs after the training, with its newest checkpoint and its outputs in place."""

    model_config = ConfigDict(title="Evaluation")

    pools: Several = Field(
        default_factory=list, description="Where it runs: on all of them side by side. Empty: where the training ran."
    )


class DrillRun(Settings):
    """What `crucible drill --script` runs instead of the whole training."""

    model_config = ConfigDict(title="Drill")

    command: Words = Field(
        min_length=1,
        description="The command line, as a text or as a list: a training of about a minute that saves every few "
        "seconds.",
    )
    total_steps: int | None = Field(None, ge=1, le=MOST, description="How many steps that is.")


def secret_block(name: str) -> str:
    """The name of a secret's Prefect block, which may have lower-case letters, digits and dashes."""
    return name.lower().replace("_", "-").strip("-")


def variable_name(field: str, name: str) -> str:
    """`name`, if a person may set a variable of that name; raises a validation error that says so otherwise."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise invalid(f"{field}: {shown(name)} is not a name of an environment variable; use letters, digits and _")
    if name.startswith(("CRUCIBLE_", "PREFECT_")):
        raise invalid(f"{field}: {name} belongs to {name.split('_')[0].capitalize()}; choose another name")
    return name


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
