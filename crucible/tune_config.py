"""What a search is asked for, whatever its trials are: the space, who is trained further, and what decides.

`tune:` of a crucible.yaml holds these settings; the deployments `tune-nanogpt` and `tune-script` take the same ones.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from crucible.settings import MOST, Settings

__all__ = ["EXAMPLE", "MOST_PARALLEL", "MOST_TRIALS", "SOME_TRIALS", "Objective", "SearchSettings", "TuneSettings"]

SamplerName = Literal["grid", "random", "tpe"]
ScheduleName = Literal["none", "asha", "halving", "hyperband"]
Goal = Literal["min", "max"]

MOST_TRIALS = 9_999
"""Of a sweep: their numbers have four digits."""
MOST_PARALLEL = 64
SOME_TRIALS = 30
"""Where the space has no end and no number is given."""
EXAMPLE = "learning_rate: {loguniform: [3e-4, 3e-3]}"
VAL_LOSS = "val_loss"


class Objective(Settings):
    """What trials are compared by: a metric that they report, and whether less or more of it is better."""

    model_config = ConfigDict(title="Objective")

    metric: str = Field(VAL_LOSS, min_length=1, max_length=200, description="Which metric of the script decides.")
    goal: Goal = Field("min", description="Whether the lowest or the highest value is the best.")

    @property
    def label(self) -> str:
        """The metric as people read it."""
        return "validation loss" if self.metric == VAL_LOSS else self.metric

    def as_loss(self, value: float) -> float:
        """What schedules and samplers minimise; of a loss, the metric's own value again."""
        return value if self.goal == "min" else -value


class SearchSettings(Settings):
    """What is searched, and how."""

    space: dict[str, Any] | str = Field(
        {},
        description="What to search, by setting; JSON or YAML. A list is a choice, a range is "
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
        None, ge=1, le=MOST, description="Steps of the first rung at least. Empty: a ninth of all steps."
    )
    reduction_factor: int = Field(3, ge=2, le=100, description="One in so many trials goes on to the next rung.")
    seed: int = Field(0, ge=0, le=MOST, description="Decides which trials are drawn, and in which order.")
    parallelism: int | None = Field(
        None, ge=1, le=MOST_PARALLEL, description="Trials at a time. Empty: one per core on local (8 at most), else 4."
    )


class TuneSettings(Objective, SearchSettings):
    """A search over a script: `tune:` of its crucible.yaml."""

    model_config = ConfigDict(title="Search")
