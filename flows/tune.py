"""`tune-nanogpt`: search for the best configuration, whatever happens to the machines in between.

    prefect deployment run tune-nanogpt --params '{"preset": "debug", "space": {"learning_rate": [3e-4, 1e-3, 3e-3]}}'
    python -m flows.tune SPACE.yaml [SWEEP]      # the same without a deployment, against the current server

Every trial is a job that trains to a rung, waits there with its checkpoint, and goes on if it is promoted. Killed and
started again with the same sweep, this flow trains no rung twice and decides as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, Literal

from prefect import flow, tags
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from crucible.config import TrainConfig
from crucible.datasets.build import resolve_dataset
from crucible.datasets.config import DatasetConfig
from crucible.datasets.meta import require_block_size
from crucible.errors import ConfigError, CrucibleError, FencedOut
from crucible.estimate.ranking import Preferences
from crucible.jobs.records import Limits
from crucible.jobs.status import JobState
from crucible.moments import moment_to_come
from crucible.placement.choice import PlacementRequest
from crucible.store import Store
from crucible.supervision.heartbeat import HeartbeatWriter
from crucible.supervision.retry_policy import Placement, Timeouts
from crucible.sweeps.records import SweepLimits, SweepSpec, SweepStatus
from crucible.sweeps.sampling import SamplerName
from crucible.sweeps.schedules import ScheduleName, hyperband_brackets, ladder
from crucible.sweeps.space import EXAMPLE, MOST_TRIALS, Space, trial_config
from crucible.sweeps.sweep import Sweep
from flows.evaluate import evaluate
from flows.parameters import Pool, Preset, TrainOverrides, resolve
from flows.preprocess import preprocess
from tasks.console import outlive_the_console
from tasks.ending import as_prefect_state, end_as, without_heartbeat
from tasks.launching import PrefectLauncher
from tasks.observing import add_tags
from tasks.placing import choose
from tasks.stopping import StopWatch, stay_paused
from tasks.storage import open_store
from tasks.sweep_reporting import SweepBoard
from tasks.sweeping import SweepRun
from tasks.training import heartbeat_seconds
from tasks.trials import HereLauncher, Machine, threads_per_trial

MOST_PARALLEL = 64
SOME_TRIALS = 30
"""Where the space has no end and nobody said how many."""
HERE = "local"
LOOK_HERE_SECONDS = 0.2


def sweep_name() -> str:
    """The sweep's id: as given, or after the flow run, so that a flow run that is started again finds its sweep."""
    return flow_run.parameters.get("sweep") or f"tune-{flow_run.id[:8]}"


@flow(
    name="tune-nanogpt",
    flow_run_name=sweep_name,
    # At most the sweep's parallelism of these threads is ever used.
    task_runner=ThreadPoolTaskRunner(max_workers=MOST_PARALLEL),  # type: ignore[arg-type]  # Prefect's hint is invariant
)
def tune_nanogpt(
    space: dict[str, Any] | str = Field(
        {},
        description="What to search, by nanoGPT's key names; JSON or YAML. A list is a choice, a range is "
        f"{{uniform | loguniform | int: [low, high]}}. Example: {EXAMPLE}",
    ),
    space_file: str = Field("", description="Path of a YAML or JSON file with the space, instead."),
    sampler: SamplerName = Field(
        "random", description="grid: every combination of lists. random: independent draws. tpe: learns from results."
    ),
    schedule: ScheduleName = Field(
        "asha",
        description="Who is trained further. asha: the best of a rung, without waiting. halving: the best of a full "
        "rung. hyperband: several halvings, from many short trials to few long ones. none: every trial to the end.",
    ),
    max_trials: int | None = Field(
        None,
        ge=1,
        le=MOST_TRIALS,
        description=f"Trials in all. Empty: the whole grid, hyperband's brackets, {SOME_TRIALS}.",
    ),
    min_steps: int | None = Field(
        None, ge=1, description="Steps of the first rung at least. Empty: a ninth of max_iters."
    ),
    reduction_factor: int = Field(3, ge=2, le=100, description="One in so many trials goes on to the next rung."),
    seed: int = Field(0, ge=0, description="Decides which trials are drawn, and in which order."),
    parallelism: int | None = Field(
        None, ge=1, le=MOST_PARALLEL, description="Trials at a time. Empty: one per core on local (8 at most), else 4."
    ),
    preset: Preset = Field("cpu-small", description="Which shipped configuration trials change."),
    config: TrainOverrides = Field(  # type: ignore[valid-type]
        TrainOverrides(), description="What differs from the preset in every trial, by nanoGPT's key names."
    ),
    dataset: DatasetConfig = Field(DatasetConfig(), description="The text to train on and its tokenizer."),
    pool: Pool | Literal["auto"] = Field(
        "local",
        description="Where to train. local: inside this flow, on its own machine. auto: for each trial the best of "
        "the pools that are ready.",
    ),
    optimize_for: Literal["cost", "time", "balanced"] = Field("balanced", description="What comes first, for auto."),
    sweep: str = Field(
        "", description="The sweep's name. Empty: a new one. An existing one is continued; its space may be left out."
    ),
    max_cost_usd: float | None = Field(
        None, gt=0, description="Stop, saved, before the whole sweep costs more. Empty: no cap."
    ),
    max_hours: float | None = Field(None, gt=0, description="Stop, saved, so many hours after the start."),
    finish_by: str = Field(
        "", description="Stop, saved, at this time, with its zone, such as 2026-05-07T18:00+02:00. Empty: no deadline."
    ),
    run_evaluation: bool = Field(True, description="Evaluate and export the best model at the end."),
    project: str = Field("default", description="Whose money it is: shown in cost reports."),
    owner: str = Field("", description="Who started it: shown in cost reports."),
    store: str = Field("default", description="Name of a Store block, or an address (file://…, s3://…)."),
) -> State:
    """Search for the best configuration by training many jobs, most of them not for long."""
    outlive_the_console()
    name = sweep_name()
    try:
        placed = open_store(store)
        found = Sweep(placed, name)
        marks = [f"sweep:{name}", f"project:{project}", *([f"owner:{owner}"] if owner else [])]
        with tags(*marks), StopWatch() as watch, HeartbeatWriter(placed, flow_run.id or "", name) as heartbeat:
            add_tags(*marks, "stage:tune")
            if not (found.exists() and not space and not space_file):
                wanted = _space(space, space_file, name)
                base = resolve(preset, config)
                wanted.require_valid_trials(base, sampler)
                steps = _ladder(schedule, base, min_steps, reduction_factor)
                spec = SweepSpec(
                    sweep_id=name,
                    space=wanted.as_json(),
                    sampler=sampler,
                    schedule=schedule,
                    ladder=steps,
                    reduction_factor=reduction_factor,
                    seed=seed,
                    config=base.model_dump(mode="json"),
                    pool=pool,
                    project=project,
                    owner=owner,
                )
                with without_heartbeat():
                    digest = preprocess(dataset=dataset, store=store)
                found = _recorded(placed, spec, wanted, base, parallelism, digest)
            deadline = moment_to_come(finish_by, None) if finish_by else None
            _set_limits(found, max_trials, max_cost_usd, max_hours, deadline)
            board = SweepBoard(found)
            status = _carry_out(found, optimize_for, store, heartbeat, watch, board)
            if watch.paused and status.state is JobState.CANCELLED:
                return stay_paused(status.reason)
            if status.state is JobState.COMPLETED and run_evaluation and (best := found.best()) is not None:
                with without_heartbeat():
                    evaluate(job=best.job_id, store=store)
                board.publish(found.read())
    except FencedOut as error:
        if (newest := found.read_status()) is not None and newest.flow_run_id == flow_run.id:
            raise Abort(str(error)) from error  # this very flow run was started again: its state is not ours to set
        return end_as(Cancelled(name="Superseded", message=str(error)))
    except CrucibleError as error:
        get_run_logger().error(str(error))
        return end_as(Failed(message=str(error)))
    return end_as(as_prefect_state(status.state, status.reason))


def _space(space: dict[str, Any] | str, space_file: str, name: str) -> Space:
    if space and space_file:
        raise ConfigError("space and space_file are both given; give one of them")
    if not space and not space_file:
        raise ConfigError(
            f"space is empty, and there is no sweep {name!r} to continue; name at least one setting to search, such "
            f"as {EXAMPLE}"
        )
    return Space.from_file(space_file) if space_file else Space.parse(space)


def _ladder(schedule: ScheduleName, base: TrainConfig, min_steps: int | None, eta: int) -> list[int]:
    if schedule == "none":
        return [base.max_iters]
    return ladder(base.max_iters, min(min_steps or max(1, base.max_iters // 9), base.max_iters), eta)


def _recorded(
    store: Store, spec: SweepSpec, space: Space, base: TrainConfig, parallelism: int | None, digest: str
) -> Sweep:
    """The sweep on record, its dataset in the store; what was left open is filled in once and for all."""
    meta = resolve_dataset(store, digest).meta
    for values in space.corners():
        require_block_size(meta, trial_config(base, values).block_size)
    before = Sweep(store, spec.sweep_id)
    known = before.read_spec() if before.exists() else None
    if parallelism is None:
        own = min(8, threads_per_trial(1)) if spec.pool == HERE else 4
        parallelism = known.parallelism if known else own
    threads = threads_per_trial(parallelism) if spec.pool == HERE and base.threads is None else None
    found = {
        "dataset": digest,
        "vocab_size": meta.vocab_size,
        "parallelism": parallelism,
        "threads": known.threads if known else threads,
    }
    return Sweep.create(store, spec.model_copy(update=found))


def _set_limits(
    sweep: Sweep,
    max_trials: int | None,
    max_cost_usd: float | None,
    max_hours: float | None,
    finish_by: datetime | None,
) -> None:
    """The limits given with this start; those that a person set since are left alone, as are those not given."""
    if not sweep.first_start(flow_run.id or ""):
        return
    spec = sweep.read_spec()
    given = {
        "max_trials": max_trials,
        "max_cost_usd": max_cost_usd,
        "max_hours": max_hours,
        "finish_by": finish_by,
    }
    before = sweep.read_limits().model_dump() if sweep.has_limits() else {"max_trials": _all_trials(spec, sweep.space)}
    limits = SweepLimits.model_validate(before | {name: value for name, value in given.items() if value is not None})
    if spec.sampler == "grid" and limits.max_trials > (points := len(sweep.space.grid())):
        limits.max_trials = points
    sweep.set_limits(limits)


def _all_trials(spec: SweepSpec, space: Space) -> int:
    if spec.sampler == "grid":
        return len(space.grid())
    if spec.schedule == "hyperband":
        return sum(b.trials or 0 for b in hyperband_brackets(len(spec.ladder), spec.reduction_factor))
    return SOME_TRIALS


def _carry_out(
    sweep: Sweep,
    optimize_for: Literal["cost", "time", "balanced"],
    store: str,
    heartbeat: HeartbeatWriter,
    watch: StopWatch,
    board: SweepBoard,
) -> SweepStatus:
    spec, here = sweep.read_spec(), sweep.read_spec().pool == HERE
    meta = resolve_dataset(sweep.root, spec.dataset).meta
    machine = Machine(spec.parallelism, spec.threads)
    timeouts = Timeouts(ended_and_silent=2 * heartbeat_seconds(sweep.root) + 2.0)
    if here:  # an attempt whose process is gone is over, and one that has ended has an outcome
        timeouts = Timeouts(ended_and_silent=0.0, poll=LOOK_HERE_SECONDS)

    @cache
    def places(config: TrainConfig) -> Sequence[Placement]:
        request = PlacementRequest(
            job_id=sweep.sweep_id,
            config=config,
            dataset=meta,
            pool=spec.pool,
            limits=Limits(max_cost_usd=sweep.read_limits().max_cost_usd),
            preferences=Preferences(optimize_for=optimize_for),
            project=spec.project,
            owner=spec.owner,
        )
        return choose(sweep.root, request).placements

    base = places(sweep.base)
    run = SweepRun(
        sweep,
        make_launcher=lambda job: HereLauncher(machine) if here else PrefectLauncher(store, spec.project, spec.owner),
        places=(lambda config: base) if here else places,
        here=here,
        timeouts=timeouts,
        board=board,
        cancelled=lambda: watch.request is not None,
    )
    try:
        with watch.polled():
            return run.run()
    except TerminationSignal:
        request = watch.requested()
        if request is not None:
            heartbeat.finish()
        run.leave(request.reason if request else "the flow run was asked to stop (SIGTERM)", request is not None)
        if watch.paused:
            return stay_paused("the sweep is paused; Resume goes on from there")
        raise


if __name__ == "__main__":
    import sys

    tune_nanogpt(space_file=sys.argv[1], sweep=sys.argv[2] if len(sys.argv) > 2 else "")
