"""The records of a sweep in the store; everything else about it is derived from the records of its trials, which are
jobs.

    sweeps/<id>/sweep.json            the spec, create-only
                limits/0001.json …    trials, money and time allowed; the newest counts
                starts/<flow run>.json  which flow runs have worked on it
                trials/0001.json …    what a trial changes, and its job; create-only
                status.json           where the sweep stands, for people
    jobs/<id>-0001/…                  the trial's job: attempts, metrics, checkpoints
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from crucible.config import TrainConfig
from crucible.jobs.records import CodePackage, Record, ShownText, now
from crucible.jobs.stage_records import stage_name
from crucible.jobs.status import JobState
from crucible.resources import Resources
from crucible.script_config import EvaluateStage, PreprocessStage, ScriptConfig
from crucible.settings import MOST_HOURS, MOST_USD
from crucible.sweeps.searchable import Values
from crucible.tune_config import MOST_TRIALS, Objective, SamplerName, ScheduleName

TO_THE_END = [1]
"""The ladder of scripts whose number of steps is not known: one rung, at their end."""


class SweepSpec(Record):
    """What is searched, and how. It never changes: another spec is another sweep."""

    fix = "restore it from a copy, or delete the sweep's folder and start the sweep again"

    sweep_id: str
    space: dict[str, Any]
    """As `Space.as_json` gives it."""
    sampler: SamplerName
    schedule: ScheduleName
    ladder: list[int]
    """The rungs in steps, ascending; the last one is the whole training."""
    reduction_factor: int = 3
    seed: int = 0
    parallelism: int = 1
    """Trials at a time. Part of the spec, since it decides how much is known when a trial is chosen."""
    config: TrainConfig | None = None
    """The complete configuration that trials change; None for trials of a script."""
    init_source: ShownText = ""
    """`init_from` as it was given; the configuration has the address in the store."""
    script: ScriptConfig | None = None
    """The script that trials run, with the settings of the space in braces."""
    code: CodePackage | None = None
    """What the script's working directory holds."""
    resources: Resources = Resources()
    """What each attempt gets of its machine, for trials of a script."""
    preprocess: PreprocessStage | None = None
    """What runs once before the trials of a script."""
    evaluate: EvaluateStage | None = None
    """What runs with the best trial of a script once the search is completed."""
    objective: Objective = Objective()
    """What trials are compared by."""
    dataset: str = ""
    vocab_size: int = 1
    pool: str = "local"
    threads: int | None = None
    """CPU threads of a trial where it shares its machine with others."""
    command: list[str] = Field(default_factory=list)
    """What runs a configuration instead of Crucible's own trainer; empty: the trainer."""
    project: ShownText = "default"
    owner: ShownText = ""
    created_at: datetime = Field(default_factory=now)

    @property
    def prepared_by(self) -> str:
        """The job whose outputs every trial finds in its working directory; empty without preprocessing."""
        return stage_name(self.sweep_id, "preprocess") if self.preprocess else ""

    @property
    def knows_total_steps(self) -> bool:
        """Whether the last rung is a number of steps, rather than a script's own end."""
        return self.ladder != TO_THE_END

    @property
    def rungs(self) -> str:
        """The rungs as people read them."""
        steps = ", ".join(f"{step:,}" for step in self.ladder)
        return f"rungs at step {steps}" if self.knows_total_steps else "every trial to its end"

    def until(self, step: int) -> str:
        """How far a trial is trained to reach the rung `step`, as people read it."""
        return f"step {step}" if self.knows_total_steps else "its end"


class SweepLimits(Record):
    """How much a sweep may use before a person is asked."""

    fix = "delete it and set the limits again with `crucible sweeps limits`"

    max_trials: int = Field(ge=1, le=MOST_TRIALS)
    max_cost_usd: float | None = Field(default=None, gt=0, le=MOST_USD)
    max_hours: float | None = Field(default=None, gt=0, le=MOST_HOURS)
    """Since the sweep was made."""
    finish_by: datetime | None = None


class TrialRecord(Record):
    """One trial: its number, what it changes in the configuration, and the job that trains it."""

    fix = "restore it from a copy; deleting it would draw the trial again"

    number: int
    values: Values
    job_id: str
    problem: str = ""
    """Why there can be no such training; empty for all but values that do not go together."""


class SweepStatus(Record):
    """Where a sweep stands, as its last flow run put it."""

    state: JobState
    reason: ShownText
    flow_run_id: str = ""
    at: datetime = Field(default_factory=now)
