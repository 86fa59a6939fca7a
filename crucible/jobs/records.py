"""The records that say what happened to a job and its attempts, as they lie in the store (see `crucible.jobs.job`)."""

from __future__ import annotations

import os
import socket
import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from crucible.config import TrainConfig
from crucible.formatting import printable
from crucible.resources import Resources
from crucible.script_config import EvaluateStage, PreprocessStage, ScriptConfig, inside
from crucible.settings import Count, Digest, Dollars, Hours

SCHEMA_VERSION = 1
ShownText = Annotated[str, AfterValidator(printable)]
"""What is written for people. Scripts colour their errors, and not every writer of a record is trusted."""


def now() -> datetime:
    """The time, in UTC, as every record writes it."""
    return datetime.now(UTC)


class EndReason(StrEnum):
    """Why an attempt ended. What follows from it is decided in one place: `crucible.supervision.retry_policy`."""

    COMPLETED = "completed"
    INTERRUPTED = "interrupted"
    """Stopped by a notice; go on elsewhere."""
    PAUSED = "paused"
    """Stopped at the step it was asked to train to."""
    BUDGET = "budget"
    """The money or time allowed is used up; go on when a person raises it."""
    CANCELLED = "cancelled"
    """A person cancelled."""
    FAILED = "failed"
    """The workload's own error; never retried."""
    KILLED = "killed"
    """The workload was killed from outside, out of memory perhaps; the machine is still there."""
    LOST = "lost"
    """No sign of life, and none came later."""
    NOT_STARTED = "not-started"
    """The pool never brought it to life: no capacity, a refused request, a broken image."""
    SUPERSEDED = "superseded"
    """Stopped itself because a newer attempt exists."""
    UNFIT = "unfit"
    """The machine's GPU is broken, throttled or taken; go on with another machine."""

    @property
    def label(self) -> str:
        """The reason as people read it."""
        return _LABELS[self]

    @property
    def saves(self) -> bool:
        """Whether an attempt that ends like this is asked to save first."""
        return self in (EndReason.INTERRUPTED, EndReason.PAUSED, EndReason.BUDGET, EndReason.CANCELLED)


_LABELS = {
    EndReason.COMPLETED: "completed",
    EndReason.INTERRUPTED: "interrupted",
    EndReason.PAUSED: "trained to the step asked for",
    EndReason.BUDGET: "budget used up",
    EndReason.CANCELLED: "cancelled",
    EndReason.FAILED: "failed",
    EndReason.KILLED: "workload killed",
    EndReason.LOST: "lost (no sign of life)",
    EndReason.NOT_STARTED: "never started",
    EndReason.SUPERSEDED: "superseded by a newer attempt",
    EndReason.UNFIT: "machine unfit",
}


class Record(BaseModel):
    """A JSON object in the store. Fields that a newer release added are kept out of the way, not refused."""

    model_config = ConfigDict(extra="ignore")
    fix: ClassVar[str] = ""
    """What a person does about a damaged record of this kind."""
    schema_version: int = SCHEMA_VERSION


class CodePackage(BaseModel):
    """The folder that a script runs in, as it was packed (`crucible.code`)."""

    digest: Digest
    data: dict[str, Digest] = Field(default_factory=dict)
    """Files and folders that are carried apart from the code: path in the folder → digest of the data set."""

    @field_validator("data")
    @classmethod
    def _stays_inside(cls, data: dict[str, str]) -> dict[str, str]:
        return {inside("data", path): digest for path, digest in data.items()}


class ForkedFrom(BaseModel):
    """The commit of another job that a job begins at, as a copy of its own."""

    job: str
    step: int
    attempt: int
    """Of the other job, which committed it."""


class JobSpec(Record):
    """What is to be trained. It never changes: another spec is another job."""

    fix = "restore it from a copy, or delete the job's folder and start the job again"

    job_id: str
    config: TrainConfig | None = None
    """The complete training configuration; None for a script that has none of ours."""
    init_source: ShownText = ""
    """`init_from` as it was given; the configuration has the address in the store."""
    script: ScriptConfig | None = None
    """The workload when it is not Crucible's own trainer."""
    code: CodePackage | None = None
    """What the script's working directory holds; None: the script needs no folder."""
    resources: Resources = Resources()
    """What each attempt gets of its machine."""
    preprocess: PreprocessStage | None = None
    """What runs before a script."""
    evaluate: EvaluateStage | None = None
    """What runs once a script is done."""
    prepared_by: str = ""
    """The job whose outputs the script finds in its working directory."""
    prepares: str = ""
    """The job that this one runs before, as its stage `preprocess`."""
    evaluates: str = ""
    """The job whose newest checkpoint this one looks at, put back into its working directory; empty for a training."""
    sweep: str = ""
    """The sweep that a script's job is a trial of."""
    forked_from: ForkedFrom | None = None
    """Where the job begins, if not at its own step 0."""
    dataset: str = ""
    """Digest of the dataset, under `datasets/` of the same store."""
    project: ShownText = "default"
    owner: ShownText = ""
    created_at: datetime = Field(default_factory=now)

    @model_validator(mode="before")
    @classmethod
    def _read_version_0_1(cls, data: Any) -> Any:
        """Version 0.1 had a dict as `config`, of any content for scripts, and the script's `command` beside it."""
        if not isinstance(data, dict):
            return data
        config = data.get("config") or None
        if command := data.get("command"):
            foreign = isinstance(config, dict) and not config.keys() <= TrainConfig.model_fields.keys()
            script = {"command": command, "settings": config if foreign else {}}
            return data | {"script": script, "config": None if foreign else config}
        return data | {"config": config}

    @property
    def stage(self) -> str:
        """Which stage of a chain the job is."""
        return "evaluate" if self.evaluates else "preprocess" if self.prepares else "train"

    @property
    def continue_command(self) -> str:
        """What starts the job again: a stage or a trial goes on with the job or the sweep that it is a part of."""
        if self.sweep:
            return f"crucible sweeps continue {self.sweep}"
        return f"crucible jobs continue {self.prepares or self.evaluates or self.job_id}"

    @property
    def total_steps(self) -> int | None:
        """How many steps the whole training has, where the configuration says so."""
        if self.config:
            return self.config.max_iters
        return self.script.total_steps if self.script else None


class Limits(Record):
    """How much may be spent on a job before a person is asked."""

    fix = "delete it and set the limits again with `crucible jobs limits`"

    max_attempts: Count = 50
    max_cost_usd: Dollars | None = None
    max_hours: Hours | None = None
    max_attempts_without_progress: Count = 2


class JobVariables(Record):
    """Variables of the attempts' pools that a person gave for the job, such as GPUs and memory."""

    fix = "delete it and give the variables again: prefect deployment run train-nanogpt -p job=… -jv NAME=value"

    values: dict[str, Any]


class Launch(Record):
    """The supervisor's decision to try once more."""

    fix = "delete it: the attempt is then decided again"

    number: int
    pool: ShownText
    reason: ShownText
    instance: ShownText = ""
    nodes: int = 1
    """How many machines it is to have at most; `Claim.nodes` is how many there were."""
    usd_per_hour: float = 0.0
    """Of all its machines together."""
    mtbf_seconds: float | None = None
    """Mean time between interruptions expected of the offer; None when it is not interruptible."""
    stop_at_step: int | None = None
    decided_by: str = ""
    decided_at: datetime = Field(default_factory=now)


class Claim(Record):
    """The machine and process that took an attempt up."""

    fix = "delete the attempt's claim.json if the process is gone"

    number: int
    token: str = Field(default_factory=lambda: uuid.uuid4().hex)
    host: ShownText = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    process_start: str | None = None
    """`local.processes.process_start`: with the pid, it identifies the process for others on its machine."""
    flow_run_id: str = ""
    instance: ShownText = ""
    nodes: int = 1
    """How many machines train together."""
    usd_per_hour: float | None = None
    """What all of them cost together, maybe another price than planned, each taken for this machine; None in records of
    earlier versions."""
    price_remark: ShownText = ""
    """How the price differs from the plan, or that it is a guess."""
    environment: dict[str, Any] = Field(default_factory=dict)
    claimed_at: datetime = Field(default_factory=now)


class Notification(Record):
    """Something the agent noticed: a notice, a store that does not answer, a save slower than its interval."""

    source: str
    reason: ShownText
    deadline: datetime | None = None
    at: datetime = Field(default_factory=now)


class Rendezvous(Record):
    """Where the nodes of an attempt meet; written by the first one, which owns the attempt."""

    fix = "delete the attempt's nodes folder if its processes are gone"

    host: str
    port: int
    token: str = Field(default_factory=lambda: uuid.uuid4().hex)
    nodes: int
    """How many of the machines are used; the others leave."""
    processes: int
    """On each of them."""
    at: datetime = Field(default_factory=now)


class NodeReport(Record):
    """Of a node that is not the attempt's first: sign of life, what its machine announces, how its workload ended."""

    fix = "delete it: the node writes it again if it is alive"

    sequence: int
    phase: str
    host: ShownText = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    instance: ShownText = ""
    """The machine's type, where the pool may give each node another one."""
    usd_per_hour: float | None = None
    """The machine's price in force; None: that of the first node's machine."""
    notice: Notification | None = None
    """The first request to stop that this machine has received."""
    notice_end_reason: EndReason = EndReason.INTERRUPTED
    end_reason: EndReason | None = None
    """How its workload ended; None while it runs."""
    message: ShownText = ""
    exit_code: int | None = None
    last_lines: list[ShownText] = Field(default_factory=list)
    at: datetime = Field(default_factory=now)


NO_STEP = 2**53
"""The step of a void start, so that versions that do not know `Start.void` let every commit count."""


class Start(Record):
    """What an attempt began from; commits of earlier attempts beyond `step` do not count from here on."""

    fix = "delete it: the commits of all attempts count then"

    step: int
    from_attempt: int | None = None
    damaged: list[str] = Field(default_factory=list)
    """Checkpoints that did not verify and were passed over, with the reason."""
    restore_seconds: float = 0.0
    void: bool = False
    """Written in its place by a later attempt: this one had not begun by then, and may not begin any more."""
    started_at: datetime = Field(default_factory=now)


class Heartbeat(Record):
    """Sign of life. `sequence` grows with each beat, so that a reader needs no common clock."""

    fix = "delete it: the attempt writes it again if it is alive"

    sequence: int
    phase: str
    step: int = 0
    total_steps: int | None = None
    committed_step: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0
    usd_per_hour: float | None = None
    """The price in force at that moment, of all nodes together; None in records of earlier versions."""
    further_instances: list[ShownText] = Field(default_factory=list)
    """The machines of the nodes after the first one, in their order, where they report them."""
    first_step_after_seconds: float | None = None
    """From the claim to the first new training step: what a recovery costs in time."""
    metrics: dict[str, float] = Field(default_factory=dict)
    saving: dict[str, float] = Field(default_factory=dict)
    """Checkpoint figures so far, as in `Outcome.saving`."""
    at: datetime = Field(default_factory=now)


class Outcome(Record):
    """How an attempt ended: the first one written stands."""

    fix = "delete it: it is written again when the attempt is seen to be over"

    end_reason: EndReason
    message: ShownText
    step: int = 0
    committed_step: int = 0
    exit_code: int | None = None
    seconds: float = 0.0
    cost_usd: float = 0.0
    usd_per_hour: float | None = None
    """The price in force at that moment, of all nodes together; None in records of earlier versions."""
    further_instances: list[ShownText] = Field(default_factory=list)
    """As in the heartbeat."""
    first_step_after_seconds: float | None = None
    """As in the heartbeat."""
    notifications: list[Notification] = Field(default_factory=list)
    saving: dict[str, float] = Field(default_factory=dict)
    """Checkpoint figures: `interval_seconds`, `stall_seconds`, `durable_seconds`, `bytes` (medians or last), and
    `own_interval_seconds` of a script that saves when it likes."""
    limits: Limits | None = None
    """The limits in force at the end: whoever goes on after a budget stop looks whether they have been raised."""
    saved: bool | None = None
    """Whether something new was committed, or the workload exited with 75 (saved). None in records of earlier
    versions, and where the supervisor decided."""
    decided_by: str = "agent"
    ended_at: datetime = Field(default_factory=now)

    @property
    def label(self) -> str:
        """The reason as people read it, and whether the work up to then is saved."""
        if not self.end_reason.saves or (self.saved is None and self.decided_by != "agent"):
            return self.end_reason.label
        return f"{self.end_reason.label}, {'nothing new saved' if self.saved is False else 'saved'}"


class StopRequest(Record):
    """Asks an attempt to save and stop."""

    fix = "delete it, and ask again with `crucible jobs stop`"

    end_reason: EndReason
    reason: ShownText
    at: datetime = Field(default_factory=now)


class Supervisor(Record):
    """Who decides for a job: the newest one counts."""

    fix = "delete it: the next supervisor takes its place"

    number: int
    token: str = Field(default_factory=lambda: uuid.uuid4().hex)
    flow_run_id: str = ""
    host: ShownText = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    claimed_at: datetime = Field(default_factory=now)

    @property
    def name(self) -> str:
        """Of the flow run where there is one: restarted, it is another supervisor with the same name."""
        return self.flow_run_id or f"{self.number:04d}"
