"""Jobs and attempts: the records in the store that say what happened, and the fence between two attempts.

A job is one piece of training; its spec never changes. An attempt is one try at it on one machine. All that is known
of a job is in these objects (every one can be read with `cat`), so whoever finds them can carry on:

    jobs/<job>/job.json                         the spec, create-only
    jobs/<job>/limits/0001.json …               attempts, money and time allowed; the newest counts
    jobs/<job>/variables/0001.json …            variables for the attempts' pools; the newest counts
    jobs/<job>/starts/<flow run>.json           which flow runs have worked on it
    jobs/<job>/supervisors/0001.json …          who decides; the newest counts, older ones step aside
    jobs/<job>/stops/<flow run>.json            a person's request to stop the job
    jobs/<job>/stages/<run>.json                preprocessing and evaluation on a pool, and what they cost
    jobs/<job>/attempts/0001/launch.json        the decision to try: where, why, at what price; create-only
                             claim.json         the machine that took it up; create-only
                             start.json         what it resumed from; create-only
                             heartbeat.json     sign of life, progress and cost so far; written by its owner only
                             stop.json          a request to save and stop
                             nodes/             of several machines: rendezvous.json where they meet, and a report
                                                of each but the first, 0001.json …
                             metrics/*.jsonl    what the workload reported, in order
                             output/*.log       everything the workload printed, in order
                             outcome.json       how it ended; create-only: the first one stands
    jobs/<job>/checkpoints/…                    see `crucible.checkpoints.commits`

The fence: an attempt is over once its outcome exists or a higher attempt is claimed. The owner looks
(`Attempt.require_current`) before and after it writes a manifest, and counts a commit only after the second look. A
successor claims first and lists commits afterwards, so it sees every commit that was counted; what a superseded
attempt still manages to write later lies beyond the successor's `start.json` and is not a commit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Self

from crucible.errors import ConfigError, FencedOut, ObjectExists, ObjectMissing, RecordDamaged
from crucible.jobs.names import checked_job_id, is_job_id
from crucible.jobs.numbered import (
    R,
    create_next,
    is_first_start,
    numbers_in,
    read_if_there,
    read_newest,
    record_numbers,
)
from crucible.jobs.output import AttemptOutput
from crucible.jobs.records import (
    NO_STEP,
    Claim,
    Heartbeat,
    JobSpec,
    JobVariables,
    Launch,
    Limits,
    NodeReport,
    Outcome,
    Record,
    Rendezvous,
    Start,
    StopRequest,
    Supervisor,
)
from crucible.jobs.stage_records import StageRun
from crucible.store import Store


class Attempt:
    """One attempt's records. Only the process that claimed it may beat, start and commit."""

    def __init__(self, job: Job, number: int) -> None:
        self.job, self.number = job, number
        self._prefix = f"attempts/{number:04d}"
        self._token: str | None = None

    def __repr__(self) -> str:
        return f"Attempt({self.job.job_id!r}, {self.number})"

    def read_launch(self) -> Launch | None:
        return self._read("launch", Launch)

    def read_claim(self) -> Claim | None:
        return self._read("claim", Claim)

    def read_start(self) -> Start | None:
        """None when it has not begun, or was superseded before it could."""
        start = self._read("start", Start)
        return None if start is None or start.void else start

    def read_heartbeat(self) -> Heartbeat | None:
        return self._read("heartbeat", Heartbeat)

    def read_stop_request(self) -> StopRequest | None:
        return self._read("stop", StopRequest)

    def read_outcome(self) -> Outcome | None:
        return self._read("outcome", Outcome)

    def take(self, claim: Claim) -> Self:
        """Claim this attempt for the calling process.

        Raises `FencedOut` when another process has it, when it is already over, or when a higher one is claimed.
        """
        try:
            self._create("claim", claim)
        except ObjectExists:
            other = self.read_claim()
            where = f"process {other.pid} on {other.host}" if other else "another process"
            raise FencedOut(f"attempt {self.number} of {self.job.job_id} is already taken by {where}") from None
        self._token = claim.token
        self.require_current()
        return self

    def require_current(self) -> None:
        """The fence. Raises `FencedOut` when this attempt is over or a higher one is claimed."""
        try:
            outcome = self.read_outcome()
        except RecordDamaged as error:  # it is there, so somebody declared the attempt over
            raise FencedOut(f"attempt {self.number} of {self.job.job_id} was declared over: {error}") from error
        if outcome is not None:
            raise FencedOut(
                f"attempt {self.number} of {self.job.job_id} was declared {outcome.label} by the {outcome.decided_by}"
            )
        for later in self.job.attempts():
            if later.number > self.number and self.job.store.exists(f"{later._prefix}/claim.json"):
                raise FencedOut(f"attempt {later.number} of {self.job.job_id} has taken over from {self.number}")

    def begin(self, start: Start) -> None:
        """Record what this attempt resumed from; from now on later commits of earlier attempts do not count.

        Raises `FencedOut` when a later attempt has called `close_earlier_starts`.
        """
        try:
            self._create("start", start)
        except ObjectExists:
            raise FencedOut(
                f"a later attempt of {self.job.job_id} took over before attempt {self.number} had begun"
            ) from None

    def close_earlier_starts(self) -> None:
        """Make sure that no earlier attempt begins from now on; call it before you choose a commit to resume from.

        An earlier attempt may be paused between its look at the fence and its start record. Written later, that record
        would void commits that this attempt builds on; so its place is taken, and exactly one of the two is written.
        """
        for earlier in self.job.attempts():
            if earlier.number < self.number and not self.job.store.exists(f"{earlier._prefix}/start.json"):
                with suppress(ObjectExists):
                    earlier._create("start", Start(step=NO_STEP, void=True))

    def write_heartbeat(self, heartbeat: Heartbeat) -> None:
        self.job.store.write_model(f"{self._prefix}/heartbeat.json", heartbeat)

    def request_stop(self, request: StopRequest) -> None:
        """Ask the attempt to save and stop; the first request stands."""
        try:
            self._create("stop", request)
        except ObjectExists:
            return

    def publish_rendezvous(self, rendezvous: Rendezvous) -> None:
        """Say where the attempt's nodes meet. Only its owner does."""
        self.job.store.write_model(f"{self._prefix}/nodes/rendezvous.json", rendezvous)

    def read_rendezvous(self) -> Rendezvous | None:
        return self._read("nodes/rendezvous", Rendezvous)

    def write_node_report(self, node: int, report: NodeReport) -> None:
        """Replace the report of node 1 or a later one. Only that node does."""
        self.job.store.write_model(f"{self._prefix}/nodes/{node:04d}.json", report)

    def read_node_report(self, node: int) -> NodeReport | None:
        return self._read(f"nodes/{node:04d}", NodeReport)

    def end(self, outcome: Outcome) -> Outcome:
        """Record how the attempt ended, unless that is already on record; returns the outcome that stands."""
        try:
            self._create("outcome", outcome)
        except ObjectExists:
            return self._standing("outcome", self.read_outcome())
        return outcome

    def append_metrics(self, sequence: int, lines: bytes) -> None:
        """Put one more piece of the workload's metrics (whole JSON lines) after those before it."""
        self.job.store.write(f"{self._prefix}/metrics/{sequence:06d}.jsonl", lines)

    def metrics(self) -> Iterator[bytes]:
        """Every metrics line of this attempt, in order."""
        for info in self.job.store.list(f"{self._prefix}/metrics"):
            yield from self.job.store.read(info.key).splitlines()

    @property
    def output(self) -> AttemptOutput:
        """What the workload printed; nothing is read before one of its methods is called."""
        return AttemptOutput(self.job.store, f"{self._prefix}/output")

    def _create(self, name: str, record: Record) -> None:
        self.job.store.create_model(f"{self._prefix}/{name}.json", record)

    def _standing(self, name: str, record: R | None) -> R:
        """The record that was there first."""
        if record is None:
            raise self.job.store.damaged(f"{self._prefix}/{name}.json", "it vanished as it was read", "try again")
        return record

    def _read(self, name: str, kind: type[R]) -> R | None:
        return read_if_there(self.job.store, f"{self._prefix}/{name}.json", kind)


class Job:
    """One job's records under `jobs/<job_id>/` of a store."""

    def __init__(self, store: Store, job_id: str) -> None:
        self.job_id = checked_job_id(job_id)
        self.root = store
        self.store = store.child(f"jobs/{job_id}")

    def __repr__(self) -> str:
        return f"Job({self.job_id!r})"

    @classmethod
    def create(cls, store: Store, spec: JobSpec) -> Job:
        """Record a new job, or find it there with the same spec.

        Raises `ConfigError` naming the fields that differ when the id is taken by another spec.
        """
        job = cls(store, spec.job_id)
        store.require_guarantees()
        try:
            job.store.create_model("job.json", spec)
        except ObjectExists:
            existing = job.read_spec()
            if spec.config and existing.config and spec.config.device == "auto":  # whatever the job was made with
                config = spec.config.model_copy(update={"device": existing.config.device})
                spec = spec.model_copy(update={"config": config})
            differing = differences(
                existing.model_dump(exclude={"created_at"}), spec.model_dump(exclude={"created_at"})
            )
            if differing:
                raise ConfigError(
                    f"job: {spec.job_id!r} already exists with another {', '.join(differing)}; a job's spec never "
                    f"changes, so continue it with the same values or choose a new job name"
                ) from None
        return job

    @classmethod
    def open(cls, store: Store, job_id: str) -> Job:
        """A job that exists. Raises `ConfigError` when it does not."""
        job = cls(store, job_id)
        if not job.store.exists("job.json"):
            raise ConfigError(f"job: there is no job {job_id!r} in {store.uri}; `crucible jobs ls` lists what there is")
        return job

    @classmethod
    def ids(cls, store: Store) -> list[str]:
        """The ids of all jobs in a store; folders that cannot be jobs are left out."""
        return [name for name in store.folders("jobs") if is_job_id(name)]

    def read_spec(self) -> JobSpec:
        spec = read_if_there(self.store, "job.json", JobSpec)
        if spec is None:
            raise ObjectMissing(f"{self.store.uri}/job.json does not exist")
        return spec

    def read_limits(self) -> Limits:
        """The limits in force: the newest that were set."""
        return read_newest(self.store, "limits", Limits) or Limits()

    def set_limits(self, limits: Limits) -> None:
        """Change the limits; takes effect at the running attempt's next look and at the next decision."""
        if limits.model_dump() != self.read_limits().model_dump() or not record_numbers(self.store, "limits"):
            create_next(self.store, "limits", lambda _: limits)

    def read_variables(self) -> dict[str, Any]:
        """The variables in force for the pools of the job's attempts: the newest that were given."""
        newest = read_newest(self.store, "variables", JobVariables)
        return newest.values if newest else {}

    def set_variables(self, values: dict[str, Any]) -> None:
        """Change the variables for the pools; takes effect with the next attempt."""
        if values != self.read_variables():
            create_next(self.store, "variables", lambda _: JobVariables(values=values))

    def first_start(self, flow_run_id: str) -> bool:
        """Whether this flow run works on the job for the first time."""
        return is_first_start(self.store, flow_run_id)

    def attempts(self) -> list[Attempt]:
        """All attempts on record, first to last."""
        return [Attempt(self, number) for number in numbers_in(self.store.folders("attempts"))]

    def attempt(self, number: int) -> Attempt:
        return Attempt(self, number)

    def decide(self, launch: Launch) -> Launch:
        """Record the decision to launch attempt `launch.number`; returns the decision that stands, maybe another's."""
        attempt = self.attempt(launch.number)
        try:
            attempt._create("launch", launch)
        except ObjectExists:
            return attempt._standing("launch", attempt.read_launch())
        return launch

    def supervise(self, flow_run_id: str = "") -> Supervisor:
        """Become the one who decides for this job; whoever was it before steps aside at its next look."""
        return create_next(self.store, "supervisors", lambda number: Supervisor(number=number, flow_run_id=flow_run_id))

    def require_supervisor(self, supervisor: Supervisor) -> None:
        """Raises `FencedOut` when someone else has become the one who decides."""
        newest = self.read_newest_supervisor()
        if newest is not None and newest.number > supervisor.number:
            raise FencedOut(
                f"job {self.job_id} is now supervised by flow run {newest.flow_run_id or 'unknown'} on {newest.host}"
            )

    def read_newest_supervisor(self) -> Supervisor | None:
        return read_newest(self.store, "supervisors", Supervisor)

    def request_stop(self, request: StopRequest, supervisor: str) -> None:
        """Ask that supervisor (`Supervisor.name`) to stop the job, whatever it is doing; the first request stands.

        It concerns that flow run only, restarted or not: a later start of the job is a new wish.
        """
        with suppress(ObjectExists):
            self.store.create_json(f"stops/{supervisor}.json", request.model_dump(mode="json"))

    def read_stop_request(self, supervisor: str) -> StopRequest | None:
        """The request to that supervisor (`Supervisor.name`), if there is one."""
        return read_if_there(self.store, f"stops/{supervisor}.json", StopRequest)

    def forget_stop_request(self, supervisor: str) -> None:
        """It has been carried out."""
        self.store.delete(f"stops/{supervisor}.json")

    def cost_usd(self, before: float = math.inf) -> float:
        """What attempts and stages together have cost so far, in USD: final figures, else the last heartbeat's.

        `before`: only the attempts before the one of this number.
        """
        total = self.stages_usd()
        for attempt in self.attempts():
            if attempt.number >= before:
                break
            record = attempt.read_outcome() or attempt.read_heartbeat()
            total += record.cost_usd if record else 0.0
        return total

    def write_stage(self, run: StageRun) -> None:
        """Put a stage on the job's bill, or update it there; only the job's supervisor does."""
        self.store.write_model(f"stages/{run.name}.json", run)

    def read_stages(self) -> list[StageRun]:
        """The stages before and after the training, first to last, without those of this machine's own process."""
        keys = [info.key for info in self.store.list("stages")]
        found = [run for key in keys if key.endswith(".json") and (run := read_if_there(self.store, key, StageRun))]
        return sorted(found, key=lambda run: (run.started_at, run.name))

    def stages_usd(self) -> float:
        """What the stages have cost so far; a stage that is a job has its own bill."""
        return sum(Job(self.root, run.job).cost_usd() if run.job else run.cost_usd for run in self.read_stages())

    def delete(self) -> None:
        """Delete all of its records; its name is free again. For a job that has never come to be."""
        for info in self.root.list(f"jobs/{self.job_id}"):
            self.root.delete(info.key)


def differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the fields whose values differ."""
    found: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        a, b = before.get(key), after.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} ({a!r}, not {b!r})")
    return found
