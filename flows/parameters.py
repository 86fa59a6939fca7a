"""What a person may ask of the flows, by the names on the Prefect form and the command line."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

from annotated_types import Le, Lt
from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from crucible.config import ConfigDraft, TrainConfig
from crucible.datasets.config import DatasetConfig
from crucible.home import local_path
from crucible.jobs.records import Limits
from crucible.moments import moment_to_come
from crucible.resources import Resources
from crucible.script_config import EvaluateStage, PreprocessStage, ScriptSettings
from crucible.settings import MOST, MOST_ATTEMPTS, MOST_HOURS, MOST_USD
from crucible.tune_config import SearchSettings, TuneSettings

Preset = Literal["cpu-small", "debug", "gpt2-124m", "shakespeare-char"]
StagePool = Literal["local", "docker-gpu", "ec2-spot", "ec2-on-demand", "modal", "slurm", "skypilot", "kubernetes"]
Pool = Literal[StagePool, "auto"]
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
Project = Annotated[str, Field(description="The project whose budget and cost report count it.")]
Owner = Annotated[str, Field(description="Who started it: shown in cost reports.")]
TrackerNames = Annotated[
    str,
    Field(
        description="Where curves are shown, too: tensorboard, mlflow, wandb, trackio, or names of Tracker blocks; "
        "several with commas. Empty: nowhere."
    ),
]


def _overrides(
    name: str, model: type[BaseModel], empty: Callable[[FieldInfo], str], config: ConfigDict
) -> type[BaseModel]:
    """A model with every field optional; `empty` says of a field where its value comes from then."""
    fields: dict[str, Any] = {}
    for key, field in model.model_fields.items():
        metadata = [*field.metadata]
        if field.annotation in (int, int | None) and not any(isinstance(entry, Le | Lt) for entry in metadata):
            metadata.append(Le(MOST))
        kind: Any = Annotated[(field.annotation, *metadata)] if metadata else field.annotation
        said = (field.description or "").partition(" Empty:")[0]
        fields[key] = (
            Optional[kind],  # noqa: UP045  (an Annotated built at run time knows no `|`)
            Field(None, title=key, description=f"{said} {empty(field)}"),
        )
    return create_model(name, __config__=config, __doc__=model.__doc__, **fields)


def _from_the_file(field: FieldInfo) -> str:
    """Where a setting of a script comes from that the form leaves empty."""
    said = (field.description or "").partition(" Empty: ")[2] or ("" if field.default in (None, {}) else field.default)
    return f"Empty: as crucible.yaml says{f', else {said}' if said else ''}".removesuffix(".") + "."


if TYPE_CHECKING:

    class TrainOverrides(BaseModel):
        """Any of `TrainConfig`'s fields."""

    class TuneOverrides(BaseModel):
        """Any of `TuneSettings`' fields."""
else:
    _STRICT = ConfigDict(extra="forbid", protected_namespaces=())
    TrainOverrides = _overrides(
        "TrainOverrides", TrainConfig, lambda _: "Empty: as in the preset.", {**_STRICT, "title": "Configuration"}
    )
    TuneOverrides = _overrides(
        "TuneOverrides", TuneSettings, _from_the_file, {**_STRICT, "frozen": True, "allow_inf_nan": False}
    )


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
    preprocess_pool: StagePool = Field("local", description="Where the text becomes tokens. local: in this flow.")
    run_evaluation: bool = Field(True, description="Evaluate and export the model at the end.")
    evaluate_pool: StagePool = Field("local", description="Where the model is evaluated. local: in this flow.")
    tracker: TrackerNames = ""
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


class ScriptFields(Request):
    """A script of your own, and where it runs."""

    command: str = Field(
        "", description="The command line, such as python train.py. Empty: the one in the folder's crucible.yaml."
    )
    code: str = Field(
        "",
        description="The folder that the command runs in: a path on this flow's machine, whose crucible.yaml counts, "
        "or the digest of a folder that crucible run has packed. Empty: the command needs none.",
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
    pool: Pool | None = Field(
        None, description="Where to run; not auto. Empty: as the folder's crucible.yaml says, else local."
    )
    resources: ResourcesWanted = Resources()


class ScriptSpending(Request):
    """What a script may cost, and whose it is: what is left empty is as the folder's crucible.yaml says."""

    max_cost_usd: float | None = Field(
        None,
        gt=0,
        le=MOST_USD,
        description="Stop, saved, before it costs more. Empty: as crucible.yaml says, or no cap.",
    )
    max_hours: float | None = Field(
        None,
        gt=0,
        le=MOST_HOURS,
        description="Stop, saved, so many hours after the start. Empty: as crucible.yaml says, or no cap.",
    )
    finish_by: str = Field(
        "",
        description="Stop, saved, at this time, with its zone, such as 2026-05-07T18:00+02:00. Empty: as crucible.yaml "
        "says, or no deadline.",
    )
    tracker: str = Field(
        "",
        description="Where curves are shown, too: tensorboard, mlflow, wandb, trackio, or names of Tracker blocks; "
        "several with commas. Empty: as crucible.yaml says, else nowhere.",
    )
    project: str = Field(
        "", description="The project whose budget and cost report count it. Empty: as crucible.yaml says."
    )
    owner: str = Field("", description="Who started it: shown in cost reports. Empty: as crucible.yaml says.")
    store: str = Field(
        "",
        description="Name of a Store block, or an address (file://…, s3://…). Empty: as crucible.yaml says, else "
        "default.",
    )


class ScriptStages(Request):
    """What runs before and after a training, or before the trials of a search and after the best of them."""

    preprocess: PreprocessStage | None = Field(
        None,
        description="A command that runs before the training, which finds its outputs in place. Empty: as the folder's "
        "crucible.yaml says.",
    )
    evaluate: EvaluateStage | None = Field(
        None,
        description="A command that runs after the training, with its newest checkpoint and outputs in place. Empty: "
        "as the folder's crucible.yaml says.",
    )

    def given_stages(self) -> dict[str, Any]:
        """The stages that were given, by the names of crucible.yaml."""
        stages = {"preprocess": self.preprocess, "evaluate": self.evaluate}
        return {name: stage.model_dump(exclude_unset=True) for name, stage in stages.items() if stage is not None}


class ScriptJob(Request):
    """The job that a script becomes."""

    job: str = Field("", description="The job's name. Empty: a new one. An existing one is continued.")
    max_attempts: int | None = Field(
        None, ge=1, le=MOST_ATTEMPTS, description="Stop after so many attempts. Empty: as crucible.yaml says, else 50."
    )


class TrainScriptRequest(ScriptSpending, ScriptJob, ScriptStages, ScriptFields):
    """What `train-script` is asked: one run of a script of your own, on as many machines as it takes."""

    def given(self) -> dict[str, Any]:
        """What was given, by the names of crucible.yaml; a folder's own file has the rest."""
        attempts = {} if self.max_attempts is None else {"max_attempts": self.max_attempts}
        return {**_given_script(self, self), **attempts, **self.given_stages()}


class SweepFields(Request):
    """The sweep, and how much it may use."""

    sweep: str = Field(
        "", description="The sweep's name. Empty: a new one. An existing one is continued; its space may be left out."
    )


class TuneScriptRequest(ScriptSpending, SweepFields, ScriptStages, ScriptFields, TuneOverrides):
    """What `tune-script` is asked: a search over a script's arguments and variables."""

    @property
    def names_a_search(self) -> bool:
        """Whether it says what to search, rather than which sweep to continue."""
        return bool(self.command or self.code or any(self.search().get(key) for key in ("space", "space_file")))

    def search(self) -> dict[str, Any]:
        """What was given of `tune:`."""
        return self.model_dump(include=set(TuneSettings.model_fields), exclude_none=True)

    def given(self) -> dict[str, Any]:
        """What was given, by the names of crucible.yaml; a folder's own file has the rest."""
        return {**_given_script(self, self), **self.given_stages(), "tune": self.search()}


class TrainedTrials(Request):
    """What trials of Crucible's own trainer have in common."""

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


class TuneRequest(SweepFields, TrainedTrials, SearchSettings):
    """What `tune-nanogpt` is asked: a search over configurations."""

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
    tracker: TrackerNames = ""
    project: Project = "default"
    owner: Owner = ""
    store: StoreName = "default"

    def draft(self) -> ConfigDraft:
        """The configuration that trials change, as far as this request decides it. Raises `ConfigError`."""
        return _draft(self.preset, self.config_file, self.config)

    def given_limits(self) -> dict[str, Any]:
        """What limits this request sets; those left empty stay as they are. Raises `ConfigError` for no time."""
        return sweep_limits(self.max_trials, self.max_cost_usd, self.max_hours, self.finish_by)


def _given_script(script: ScriptFields, spending: ScriptSpending) -> dict[str, Any]:
    """The settings of crucible.yaml that a form fills in, without those that it leaves empty."""
    named = {
        "command": script.command,
        "workload": script.workload,
        "pool": script.pool,
        "resources": script.resources.model_dump(exclude_defaults=True),
        **spending.model_dump(include=set(ScriptSpending.model_fields)),
    }
    given = {name: value for name, value in named.items() if value not in (None, "", {})}
    return {**script.script.model_dump(exclude_unset=True), **given}


def sweep_limits(max_trials: int | None, usd: float | None, hours: float | None, finish_by: str) -> dict[str, Any]:
    """The limits that are given, by the names of `SweepLimits`. Raises `ConfigError` for what is no time."""
    moment = moment_to_come(finish_by, None) if finish_by else None
    given = {"max_trials": max_trials, "max_cost_usd": usd, "max_hours": hours, "finish_by": moment}
    return {name: value for name, value in given.items() if value is not None}


def _draft(preset: str, file: str, overrides: TrainOverrides) -> ConfigDraft:
    draft = ConfigDraft.from_file(local_path(file, "config_file")) if file else ConfigDraft.preset(preset, {})
    return draft.with_overrides(overrides.model_dump(exclude_none=True))
