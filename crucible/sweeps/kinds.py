"""The two kinds of trial: a configuration of Crucible's own trainer, or a script of your own.

They differ in what a trial's values change, in the job that this makes, and in where the objective is read; everything
else about a sweep is the same for both.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import yaml

from crucible.checkpoints.commits import Checkpoints
from crucible.config import TrainConfig
from crucible.errors import ConfigError
from crucible.estimate.needs import flops_per_token
from crucible.jobs.job import Attempt
from crucible.jobs.metrics import Metrics
from crucible.jobs.records import EndReason, JobSpec, Outcome
from crucible.script_config import ScriptConfig
from crucible.sweeps.records import SweepSpec, TrialRecord
from crucible.sweeps.searchable import ConfigSettings, ScriptPlaceholders, Searchable, Value, Values, filled
from crucible.tune_config import VAL_LOSS, Objective

REACHED = (EndReason.PAUSED, EndReason.COMPLETED)
"""How an attempt ends that was trained as far as it was asked to."""


class TrialKind(Protocol):
    """What a sweep has to know of its trials."""

    @property
    def objective(self) -> Objective:
        """What they are compared by."""

    @property
    def settings(self) -> Searchable:
        """What the space may name."""

    def check(self, values: Values) -> object:
        """Raises `ConfigError` when there can be no trial with these values."""

    def job_spec(self, record: TrialRecord) -> JobSpec:
        """The trial's job. Raises `ConfigError` as `check` does."""

    def stop_at_step(self, step: int) -> int | None:
        """Where the attempt that trains to the rung `step` has to stop; None: it ends by itself."""

    def step_cost(self, values: Values) -> float:
        """How long a step of a trial lasts in the planner's time. Raises `ConfigError` as `check` does."""

    def measured(self, attempt: Attempt, outcome: Outcome, ladder: Sequence[int]) -> Mapping[int, float | None]:
        """By rung, what the attempt that ended so says about it; None where it should, and does not."""

    def describe(self, values: Values) -> dict[str, Any]:
        """A trial as it may be copied: a complete configuration, or a command and its variables."""


class ConfigTrials:
    """Trials of Crucible's own trainer: each rung is measured over the whole validation split, at exactly its step."""

    objective = Objective()
    settings: Searchable = ConfigSettings()

    def __init__(self, spec: SweepSpec, config: TrainConfig) -> None:
        self._spec, self._config = spec, config

    def check(self, values: Values) -> TrainConfig:
        return trial_config(self._config, values)

    def job_spec(self, record: TrialRecord) -> JobSpec:
        spec = self._spec
        return JobSpec(
            job_id=record.job_id,
            config=self.check(record.values),
            dataset=spec.dataset,
            script=ScriptConfig(command=spec.command) if spec.command else None,
            project=spec.project,
            owner=spec.owner,
        )

    def stop_at_step(self, step: int) -> int | None:
        return step

    def step_cost(self, values: Values) -> float:
        config = self.check(values)
        tokens = config.batch_size * config.gradient_accumulation_steps * config.block_size
        return tokens * flops_per_token(config, self._spec.vocab_size)

    def measured(self, attempt: Attempt, outcome: Outcome, ladder: Sequence[int]) -> Mapping[int, float | None]:
        """What the attempt last measured at its last step; without those metrics, what the checkpoint says."""
        step = outcome.committed_step
        if step not in ladder:
            return {}
        metrics = Metrics(attempt.job)
        for pieces in (2, None):  # it is nearly always among the last lines
            for row in metrics.of_attempt(attempt, pieces):
                if row["step"] == step and VAL_LOSS in row:
                    return {step: row[VAL_LOSS]}
        return {step: next((c.val_loss for c in Checkpoints(attempt.job).list() if c.step == step), None)}

    def describe(self, values: Values) -> dict[str, Any]:
        return self.check(values).model_dump(mode="json", exclude_none=True)


class ScriptTrials:
    """Trials of a script, which saves and reports when it likes.

    A rung counts once a checkpoint at its step or later is committed, or the script has ended by itself. It is measured
    by the last value reported up to its step; by the first one after it where there is none.
    """

    def __init__(self, spec: SweepSpec, script: ScriptConfig) -> None:
        self._spec, self._script = spec, script
        self.objective, self.settings = spec.objective, ScriptPlaceholders(script)

    def check(self, values: Values) -> ScriptConfig:
        return filled(self._script, list(self._spec.space), values)

    def job_spec(self, record: TrialRecord) -> JobSpec:
        spec = self._spec
        return JobSpec(
            job_id=record.job_id,
            script=self.check(record.values),
            code=spec.code,
            resources=spec.resources,
            prepared_by=spec.prepared_by,
            sweep=spec.sweep_id,
            project=spec.project,
            owner=spec.owner,
        )

    def stop_at_step(self, step: int) -> int | None:
        return None if step == self._spec.ladder[-1] else step

    def step_cost(self, values: Values) -> float:
        return 1.0

    def measured(self, attempt: Attempt, outcome: Outcome, ladder: Sequence[int]) -> Mapping[int, float | None]:
        ended = outcome.end_reason is EndReason.COMPLETED
        reached = [step for step in ladder if ended or step <= outcome.committed_step]
        if not reached:
            return {}
        name = self.objective.metric
        rows = Metrics(attempt.job).rows(until=attempt.number)
        reports = [(row["step"], row[name]) for row in rows if name in row]
        if not reports:
            return dict.fromkeys(reached)
        found: dict[int, float | None] = {}
        for step in reached:
            last = ended and step == ladder[-1]
            before = [value for at, value in reports if last or at <= step]
            found[step] = before[-1] if before else reports[0][1]
        return found

    def describe(self, values: Values) -> dict[str, Any]:
        script = self.check(values)
        return {"command": shlex.join(script.command), **({"env": dict(script.env)} if script.env else {})}


def kind_of(spec: SweepSpec) -> TrialKind:
    """What the trials of a sweep are."""
    if spec.config is not None:
        return ConfigTrials(spec, spec.config)
    if spec.script is None:
        raise ConfigError(f"sweep: {spec.sweep_id} has neither a configuration nor a script; start a new sweep")
    return ScriptTrials(spec, spec.script)


def trial_config(base: TrainConfig, values: Mapping[str, Value]) -> TrainConfig:
    """The complete configuration of a trial. Raises `ConfigError` when the values do not go together."""
    return TrainConfig.parse({**base.model_dump(), **values})


def as_yaml(described: Mapping[str, Any]) -> str:
    """What `describe` returned, ready to be copied into a file."""
    return yaml.safe_dump(dict(described), sort_keys=False, width=1000)
