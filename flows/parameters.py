"""What a person may ask of the flows, by the names on the Prefect form and the command line."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

from annotated_types import Le, Lt
from pydantic import BaseModel, ConfigDict, Field, create_model

from crucible.config import ConfigDraft, TrainConfig
from crucible.datasets.config import DatasetConfig
from crucible.errors import ConfigError
from crucible.home import local_path
from crucible.jobs.records import Limits
from crucible.moments import moment_to_come
from crucible.resources import Resources
from crucible.script_config import EvaluateStage, ScriptSettings
from crucible.settings import MOST, MOST_ATTEMPTS, MOST_HOURS, MOST_USD
from crucible.sweeps.sampling import SamplerName
from crucible.sweeps.schedules import ScheduleName, ladder
from crucible.sweeps.space import EXAMPLE, MOST_TRIALS, Space

MOST_PARALLEL = 64
SOME_TRIALS = 30
"""Where the space has no end and nobody said how many."""

Preset = Literal["cpu-small", "debug", "gpt2-124m", "shakespeare-char"]
Pool = Literal["local", "docker-gpu", "ec2-spot", "ec2-on-demand", "modal", "auto"]
Goal = Literal["cost", "time", "balanced"]

StoreName = Annotated[str, Field(description="Name of a Store block, or an address (file://…, s3://…).")]
Dataset = Annotated[DatasetConfig, Field(description="The text to train on and its tokenizer.")]
ConfigFile = Annotated[
    str,
    Field(
        description="Instead of a preset: path of a YAML or JSON file of settings, or of a config/*.py of nanoGPT, on "
        "the machine that runs this flow."
    ),
]
OptimizeFor = Annotated[Goal, Field(description="What comes first, for auto.")]
ResourcesWanted = Annotated[
    Resources, Field(description="GPUs, machine type, memory or image of each attempt, instead of the pool's.")
]
Project = Annotated[str, Field(description="Whose money it is: shown in cost reports.")]
Owner = Annotated[str, Field(description="Who started it: shown in cost reports.")]


def _overrides() -> type[BaseModel]:
    """`TrainConfig` with every field optional: what is left empty comes from the preset."""
    fields: dict[str, Any] = {}
    for name, field in TrainConfig.model_fields.items():
        metadata = [*field.metadata]
        if field.annotation in (int, int | None) and not any(isinstance(entry, Le | Lt) for entry in metadata):
            metadata.append(Le(MOST))
        kind: Any = Annotated[(field.annotation, *metadata)] if metadata else field.annotation
        fields[name] = (
            Optional[kind],  # noqa: UP045  (an Annotated built at run time knows no `|`)
            Field(None, title=name, description=f"{field.description} Empty: as in the preset."),
        )
    return create_model(
        "TrainOverrides",
        __config__=ConfigDict(extra="forbid", title="Configuration", protected_namespaces=()),
        __doc__="What differs from the preset, by nanoGPT's own key names.",
        **fields,
    )


if TYPE_CHECKING:

    class TrainOverrides(BaseModel):
        """Any of `TrainConfig`'s fields."""
else:
    TrainOverrides = _overrides()


class Request(BaseModel):
    """Base of what flows are asked: every field has a bound, and no other is accepted."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainRequest(Request):
    """What `train-nanogpt` is asked: one training, on as many machines as it takes."""

    preset: Preset = Field("cpu-small", description="Which shipped configuration to start from.")
    config: TrainOverrides = Field(
        TrainOverrides(), description="What differs from the preset, by nanoGPT's key names."
    )
    config_file: ConfigFile = ""
    dataset: Dataset = DatasetConfig()
    pool: Pool = Field(
        "local", description="Where to train. auto: the best of the pools that are ready, by what optimize_for says."
    )
    optimize_for: OptimizeFor = "balanced"
    resources: ResourcesWanted = Resources()
    job: str = Field("", description="The job's name. Empty: a new one. An existing one is continued.")
    max_attempts: int = Field(50, ge=1, le=MOST_ATTEMPTS, description="Stop after so many attempts.")
    max_cost_usd: float | None = Field(
        None, gt=0, le=MOST_USD, description="Stop, saved, before the job costs more. Empty: no cap."
    )
    max_hours: float | None = Field(
        None, gt=0, le=MOST_HOURS, description="Stop, saved, so many hours after the start. Empty: no cap."
    )
    finish_by: str = Field(
        "", description="Be done by then: a time with its zone, such as 2026-05-07T18:00+02:00. Empty: no deadline."
    )
    run_evaluation: bool = Field(True, description="Evaluate and export the model at the end.")
    project: Project = "default"
    owner: Owner = ""
    store: StoreName = "default"

    def draft(self) -> ConfigDraft:
        """The configuration as far as this request decides it. Raises `ConfigError`."""
        return _draft(self.preset, self.config_file, self.config)

    def limits(self) -> Limits:
        return Limits(max_attempts=self.max_attempts, max_cost_usd=self.max_cost_usd, max_hours=self.max_hours)

    def deadline(self, after: datetime | None) -> datetime | None:
        """The moment of `finish_by`. Raises `ConfigError` for what is no time, or not later than `after`."""
        return moment_to_come(self.finish_by, after) if self.finish_by else None


class TrainScriptRequest(Request):
    """What `train-script` is asked: one run of a script of your own, on as many machines as it takes."""

    command: str = Field(
        "", description="The command line, such as python train.py. Empty: the one in the folder's crucible.yaml."
    )
    code: str = Field(
        "",
        description="The folder that the command runs in: a path on this flow's machine, which may hold a "
        "crucible.yaml, or the digest of a folder that crucible run has packed. Empty: the command needs none.",
    )
    data: dict[str, str] = Field(
        {}, description="Of a packed folder: the digests of its data by path, as crucible run fills them in."
    )
    workload: str = Field(
        "", description="A preset for a known kind of script: nanogpt, huggingface or lightning. Empty: none."
    )
    script: Annotated[
        ScriptSettings, Field(description="Checkpoints, metrics, resume arguments, outputs, variables.")
    ] = ScriptSettings()
    pool: Pool = Field("local", description="Where to run. Not auto: there is no estimate for a script of your own.")
    evaluate: EvaluateStage | None = Field(
        None, description="A command that runs after the training, with its newest checkpoint and outputs in place."
    )
    resources: ResourcesWanted = Resources()
    job: str = Field("", description="The job's name. Empty: a new one. An existing one is continued.")
    max_attempts: int = Field(50, ge=1, le=MOST_ATTEMPTS, description="Stop after so many attempts.")
    max_cost_usd: float | None = Field(
        None, gt=0, le=MOST_USD, description="Stop, saved, before the job costs more. Empty: no cap."
    )
    max_hours: float | None = Field(
        None, gt=0, le=MOST_HOURS, description="Stop, saved, so many hours after the start. Empty: no cap."
    )
    finish_by: str = Field(
        "", description="Stop, saved, at this time, with its zone, such as 2026-05-07T18:00+02:00. Empty: no deadline."
    )
    project: Project = "default"
    owner: Owner = ""
    store: StoreName = "default"

    def given(self) -> dict[str, Any]:
        """The script's settings as far as they were given; a folder's crucible.yaml has the rest."""
        resources = self.resources.model_dump(exclude_defaults=True)
        named = {"command": self.command, "workload": self.workload, "resources": resources}
        return {**self.script.model_dump(exclude_unset=True), **{name: value for name, value in named.items() if value}}

    def limits(self, moment: datetime) -> Limits:
        """The limits of a job that starts at `moment`. Raises `ConfigError` for a `finish_by` that is no time."""
        hours = [] if self.max_hours is None else [self.max_hours]
        if self.finish_by:
            hours.append((moment_to_come(self.finish_by, moment) - moment).total_seconds() / 3600)
        return Limits(
            max_attempts=self.max_attempts, max_cost_usd=self.max_cost_usd, max_hours=min(hours, default=None)
        )


class TuneRequest(Request):
    """What `tune-nanogpt` is asked: a search over configurations."""

    space: dict[str, Any] | str = Field(
        {},
        description="What to search, by nanoGPT's key names; JSON or YAML. A list is a choice, a range is "
        f"{{uniform | loguniform | int: [low, high]}}. Example: {EXAMPLE}",
    )
    space_file: str = Field("", description="Path of a YAML or JSON file with the space, instead.")
    sampler: SamplerName = Field(
        "random", description="grid: every combination of lists. random: independent draws. tpe: learns from results."
    )
    schedule: ScheduleName = Field(
        "asha",
        description="Who is trained further. asha: the best of a rung, without waiting. halving: the best of a full "
        "rung. hyperband: several halvings, from many short trials to few long ones. none: every trial to the end.",
    )
    max_trials: int | None = Field(
        None,
        ge=1,
        le=MOST_TRIALS,
        description=f"Trials in all. Empty: the whole grid, hyperband's brackets, {SOME_TRIALS}.",
    )
    min_steps: int | None = Field(
        None, ge=1, le=MOST, description="Steps of the first rung at least. Empty: a ninth of max_iters."
    )
    reduction_factor: int = Field(3, ge=2, le=100, description="One in so many trials goes on to the next rung.")
    seed: int = Field(0, ge=0, le=MOST, description="Decides which trials are drawn, and in which order.")
    parallelism: int | None = Field(
        None, ge=1, le=MOST_PARALLEL, description="Trials at a time. Empty: one per core on local (8 at most), else 4."
    )
    preset: Preset = Field("cpu-small", description="Which shipped configuration trials change.")
    config: TrainOverrides = Field(
        TrainOverrides(), description="What differs from the preset in every trial, by nanoGPT's key names."
    )
    config_file: ConfigFile = ""
    dataset: Dataset = DatasetConfig()
    pool: Pool = Field(
        "local",
        description="Where to train. local: inside this flow, on its own machine. auto: for each trial the best of "
        "the pools that are ready.",
    )
    optimize_for: OptimizeFor = "balanced"
    sweep: str = Field(
        "", description="The sweep's name. Empty: a new one. An existing one is continued; its space may be left out."
    )
    max_cost_usd: float | None = Field(
        None, gt=0, le=MOST_USD, description="Stop, saved, before the whole sweep costs more. Empty: no cap."
    )
    max_hours: float | None = Field(
        None, gt=0, le=MOST_HOURS, description="Stop, saved, so many hours after the start."
    )
    finish_by: str = Field(
        "", description="Stop, saved, at this time, with its zone, such as 2026-05-07T18:00+02:00. Empty: no deadline."
    )
    run_evaluation: bool = Field(True, description="Evaluate and export the best model at the end.")
    project: Project = "default"
    owner: Owner = ""
    store: StoreName = "default"

    def draft(self) -> ConfigDraft:
        """The configuration that trials change, as far as this request decides it. Raises `ConfigError`."""
        return _draft(self.preset, self.config_file, self.config)

    def read_space(self, sweep: str) -> Space:
        """The space, from the form or its file. Raises `ConfigError` unless exactly one of them is given and valid."""
        if self.space and self.space_file:
            raise ConfigError("space and space_file are both given; give one of them")
        if self.space_file:
            return Space.from_file(self.space_file)
        if not self.space:
            raise ConfigError(
                f"space is empty, and there is no sweep {sweep!r} to continue; name at least one setting to search, "
                f"such as {EXAMPLE}"
            )
        return Space.parse(self.space)

    def ladder(self, base: TrainConfig) -> list[int]:
        """The rungs in steps, ascending; the last one is the whole training."""
        if self.schedule == "none":
            return [base.max_iters]
        first = min(self.min_steps or max(1, base.max_iters // 9), base.max_iters)
        return ladder(base.max_iters, first, self.reduction_factor)

    def given_limits(self) -> dict[str, Any]:
        """What limits this request sets; those left empty stay as they are. Raises `ConfigError` for no time."""
        given = {
            "max_trials": self.max_trials,
            "max_cost_usd": self.max_cost_usd,
            "max_hours": self.max_hours,
            "finish_by": moment_to_come(self.finish_by, None) if self.finish_by else None,
        }
        return {name: value for name, value in given.items() if value is not None}


def _draft(preset: str, file: str, overrides: TrainOverrides) -> ConfigDraft:
    draft = ConfigDraft.from_file(local_path(file, "config_file")) if file else ConfigDraft.preset(preset, {})
    return draft.with_overrides(overrides.model_dump(exclude_none=True))
