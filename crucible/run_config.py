"""`crucible.yaml`: what `crucible run` does in a folder.

A script's settings, what travels with it, and where it runs. Options of the command line take precedence over the
file, and the file over the preset that `workload` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import ConfigDict, Field, field_validator, model_validator

from crucible.errors import ConfigError
from crucible.resources import Resources
from crucible.script_config import (
    DrillRun,
    EvaluateStage,
    Paths,
    PreprocessStage,
    ScriptConfig,
    ScriptSettings,
    Several,
    Words,
)
from crucible.script_presets import with_preset
from crucible.settings import Count, Dollars, Hours
from crucible.tune_config import TuneSettings

FILE = "crucible.yaml"


class RunConfig(ScriptSettings):
    """The settings of `crucible.yaml`."""

    model_config = ConfigDict(title="crucible.yaml")

    command: Words = Field(
        default_factory=list, description="The command line, as a text or as a list. It runs in a copy of the folder."
    )
    workload: str = Field(
        "",
        description="A preset for a known kind of script: nanogpt, huggingface or lightning. Settings beside it take "
        "precedence.",
    )
    preprocess: PreprocessStage | None = Field(
        None, description="A command that runs before the training, which finds its outputs in place."
    )
    evaluate: EvaluateStage | None = Field(
        None, description="A command that runs after the training, with its newest checkpoint and outputs in place."
    )
    drill: DrillRun | None = Field(
        None, description="What crucible drill --script runs: a short training. Empty: the command itself."
    )
    tune: TuneSettings | None = Field(
        None, description="A search over the script: crucible tune. Its settings stand as {name} in command or env."
    )
    name: str = Field("", max_length=40, description="What jobs are named after. Empty: the folder's name.")
    include: Paths = Field(
        default_factory=list, description="Files, folders or globs that travel with the code although git ignores them."
    )
    data: Paths = Field(
        default_factory=list,
        description="Files and folders that the script reads: carried by content, uploaded once whatever their size.",
    )
    pool: str = Field(
        "local", description="Where it runs: local, docker-gpu, ec2-spot, ec2-on-demand, modal, slurm or skypilot."
    )
    dockerfile: str = Field(
        "",
        description="The Dockerfile that docker-gpu and EC2 build the script's image from. Empty: the folder's own, if "
        "it has one; none: the pool's image.",
    )
    resources: Resources = Field(Resources(), description="GPUs, machine type, memory or image, instead of the pool's.")
    max_cost_usd: Dollars | None = Field(None, description="Stop, saved, before the job costs more. Empty: no cap.")
    max_hours: Hours | None = Field(None, description="Stop, saved, so many hours after the start. Empty: no cap.")
    max_attempts: Count = Field(50, description="Stop after so many attempts.")
    finish_by: str = Field("", description="Stop, saved, at this time, such as 2026-05-07T18:00+02:00.")
    tracker: Several = Field(
        default_factory=list,
        description="Where curves are shown, too: tensorboard, mlflow, wandb, trackio, or names of Tracker blocks.",
    )
    store: str = Field("default", min_length=1, description="Name of a Store block, or an address (file://…, s3://…).")
    project: str = Field("default", description="The project whose budget and cost report count it.")
    owner: str = Field("", description="Who started it: shown in cost reports.")

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or not (name := data.get("workload")):
            return data
        return with_preset(str(name), data)

    @field_validator("include", "data")
    @classmethod
    def _as_git_writes_them(cls, value: list[str]) -> list[str]:
        return [path.removeprefix("./").rstrip("/") for path in value]

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The file's JSON schema, with the short forms that it accepts: a text for a list, a name for a section."""
        schema = cls.model_json_schema()
        text = {"type": "string"}
        for name in ("command", "resume", "include", "data", "output", "secrets", "checkpoint", "metrics", "tracker"):
            entry = schema["properties"][name]
            kept = {key: entry.pop(key) for key in list(entry) if key not in ("title", "description", "default")}
            entry["anyOf"] = [*kept.pop("anyOf", [kept]), text]
        values = [text, {"type": "number"}]
        schema["properties"]["env"]["additionalProperties"] = {"anyOf": values}
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

    @classmethod
    def from_folder(cls, folder: Path, given: Mapping[str, Any]) -> Self:
        """The settings of the folder's crucible.yaml, if it has one, with `given` in their place.

        Raises `ConfigError` with one message for all that is wrong.
        """
        return cls.from_file(folder / FILE, given)

    @classmethod
    def from_file(cls, path: Path, given: Mapping[str, Any]) -> Self:
        """The same for a file of any name; one that is not there sets nothing."""
        return cls.parse(_merged(read_file(path), given), source=path.name if path.is_file() else "")

    def script(self) -> ScriptConfig:
        """What goes into the job's record. Raises `ConfigError` where there is no command."""
        if not self.command:
            raise ConfigError(
                f"command: there is none; write it after --, as in crucible run -- python train.py, or in {FILE}"
            )
        script = ScriptConfig.model_validate({name: getattr(self, name) for name in ScriptConfig.model_fields})
        if self.resources.node_range.most > 1 and script.starts_processes:
            raise ConfigError(
                f"command: {script.command[0]} starts the processes itself and would not find the other nodes; with "
                f"resources: {{nodes: {self.resources.nodes}}} write the plain command, such as python train.py, which "
                f"torchrun starts on each of them"
            )
        return script


def _merged(file: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a section that is given in part stay as the file has them, but for a space that replaces another."""
    merged = {**file, **given}
    for section in ("tune", "resources"):
        before, now = file.get(section), given.get(section)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            dropped = {"space", "space_file"} if now.keys() & {"space", "space_file"} else set()
            merged[section] = {**{key: value for key, value in before.items() if key not in dropped}, **now}
    return merged


def read_file(path: Path) -> dict[str, Any]:
    """The settings in a file, unchecked; none if there is no file. Raises `ConfigError` for what is not YAML."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}"
        ) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a 30th of February
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold settings as `key: value`, not a {type(values).__name__}")
    return values
