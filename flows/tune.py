"""`tune-nanogpt`: search for the best configuration, whatever happens to the machines in between.

    prefect deployment run tune-nanogpt --params '{"preset": "debug", "space": {"learning_rate": [3e-4, 1e-3, 3e-3]}}'
    python -m flows.tune SPACE.yaml [SWEEP]      # the same without a deployment, against the current server

Every trial is a job that trains to a rung, waits there with its checkpoint, and goes on if it is promoted. Killed and
started again with the same sweep, this flow trains no rung twice and decides as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from prefect import flow, tags
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from crucible.config import TrainConfig
from crucible.datasets.build import resolve_dataset
from crucible.datasets.meta import require_block_size
from crucible.errors import ConfigError, CrucibleError, FencedOut
from crucible.estimate.ranking import Preferences
from crucible.jobs.records import Limits
from crucible.jobs.status import JobState
from crucible.placement.choice import PlacementRequest
from crucible.store import Store
from crucible.supervision.heartbeat import HeartbeatWriter
from crucible.supervision.prefect_server import server_id
from crucible.supervision.retry_policy import Placement, Timeouts
from crucible.sweeps.records import SweepLimits, SweepSpec, SweepStatus
from crucible.sweeps.schedules import hyperband_brackets
from crucible.sweeps.space import Space, trial_config
from crucible.sweeps.sweep import Sweep
from flows.evaluate import evaluate
from flows.forms import takes
from flows.parameters import MOST_PARALLEL, SOME_TRIALS, TuneRequest
from flows.preprocess import preprocess
from tasks.console import outlive_the_console
from tasks.costs import BudgetWatch
from tasks.ending import as_prefect_state, end_as, without_heartbeat
from tasks.initial import settle
from tasks.job_variables import given_to_this_run, require_known
from tasks.launching import PrefectLauncher
from tasks.observing import add_tags
from tasks.placing import choose
from tasks.stopping import StopWatch, stay_paused
from tasks.storage import open_store
from tasks.sweep_reporting import SweepBoard
from tasks.sweeping import SweepRun
from tasks.training import heartbeat_seconds
from tasks.trials import HereLauncher, Machine, threads_per_trial

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
@takes(TuneRequest)
def tune_nanogpt(**given: Any) -> State:
    """Search for the best configuration by training many jobs, most of them not for long."""
    outlive_the_console()
    request = TuneRequest(**given)
    name = sweep_name()
    try:
        placed = open_store(request.store)
        found = Sweep(placed, name)
        marks = [f"sweep:{name}", f"project:{request.project}", *([f"owner:{request.owner}"] if request.owner else [])]
        with (
            tags(*marks),
            StopWatch() as watch,
            HeartbeatWriter(placed, flow_run.id or "", name, server_id()) as heartbeat,
        ):
            add_tags(*marks, "stage:tune")
            if request.space or request.space_file or not found.exists():
                found = _recorded(placed, name, request)
            _set_limits(found, request)
            board = SweepBoard(found)
            status = _carry_out(found, request, heartbeat, watch, board)
            if watch.paused and status.state is JobState.CANCELLED:
                return stay_paused(status.reason)
            if status.state is JobState.COMPLETED and request.run_evaluation and (best := found.best()) is not None:
                with without_heartbeat():
                    evaluate(job=best.job_id, store=request.store)
                board.publish(found.read_trials())
    except FencedOut as error:
        if (newest := found.read_status()) is not None and newest.flow_run_id == flow_run.id:
            raise Abort(str(error)) from error  # this very flow run was started again: its state is not ours to set
        return end_as(Cancelled(name="Superseded", message=str(error)))
    except CrucibleError as error:
        get_run_logger().error(str(error))
        return end_as(Failed(message=str(error)))
    return end_as(as_prefect_state(status.state, status.reason))


def _recorded(store: Store, name: str, request: TuneRequest) -> Sweep:
    """Record the sweep and put its dataset into the store; what the request leaves open is decided here, once."""
    space, before = request.read_space(name), Sweep(store, name)
    known = before.read_spec() if before.exists() else None
    start = settle(request.draft(), store, (known.config, known.init_source) if known else (None, ""))
    base = start.config
    if (base.init_from or "").startswith("resume:"):
        raise ConfigError("init_from: resume: goes on with one training; a sweep starts each trial, so leave it out")
    space.require_valid_trials(base, request.sampler)
    ladder = request.ladder(base)
    with without_heartbeat():
        digest = preprocess(dataset=request.dataset, store=request.store)
    meta = resolve_dataset(store, digest).meta
    start.require_vocabulary(meta.vocab_size)
    for values in space.corners():
        require_block_size(meta, trial_config(base, values).block_size)
        start.require_shape(values)
    here, parallelism = request.pool == HERE, request.parallelism
    if parallelism is None:
        own = min(8, threads_per_trial(1)) if here else 4
        parallelism = known.parallelism if known else own
    threads = threads_per_trial(parallelism) if here and base.threads is None else None
    spec = SweepSpec(
        sweep_id=name,
        space=space.as_json(),
        sampler=request.sampler,
        schedule=request.schedule,
        ladder=ladder,
        reduction_factor=request.reduction_factor,
        seed=request.seed,
        parallelism=parallelism,
        config=base,
        init_source=start.init_source,
        dataset=digest,
        vocab_size=meta.vocab_size,
        pool=request.pool,
        threads=known.threads if known else threads,
        project=request.project,
        owner=request.owner,
    )
    return Sweep.create(store, spec)


def _set_limits(sweep: Sweep, request: TuneRequest) -> None:
    """Set the limits of this request, once: a flow run that is restarted keeps what a person has set since."""
    given = request.given_limits()
    if not sweep.first_start(flow_run.id or ""):
        return
    spec, space = sweep.read_spec(), sweep.read_space()
    before = sweep.read_limits().model_dump() if sweep.has_limits() else {"max_trials": _all_trials(spec, space)}
    limits = SweepLimits.model_validate(before | given)
    if spec.sampler == "grid":
        limits.max_trials = min(limits.max_trials, len(space.grid()))
    sweep.set_limits(limits)


def _all_trials(spec: SweepSpec, space: Space) -> int:
    if spec.sampler == "grid":
        return len(space.grid())
    if spec.schedule == "hyperband":
        return sum(b.trials or 0 for b in hyperband_brackets(len(spec.ladder), spec.reduction_factor))
    return SOME_TRIALS


def _carry_out(
    sweep: Sweep, request: TuneRequest, heartbeat: HeartbeatWriter, watch: StopWatch, board: SweepBoard
) -> SweepStatus:
    spec, here = sweep.read_spec(), sweep.read_spec().pool == HERE
    meta = resolve_dataset(sweep.root, spec.dataset).meta
    machine = Machine(spec.parallelism, spec.threads)
    timeouts = Timeouts(ended_and_silent=2 * heartbeat_seconds(sweep.root) + 2.0)
    if here:  # an attempt whose process is gone is over, and one that has ended has an outcome
        timeouts = Timeouts(ended_and_silent=0.0, poll=LOOK_HERE_SECONDS)

    @cache
    def places(config: TrainConfig) -> Sequence[Placement]:
        wanted = PlacementRequest(
            job_id=sweep.sweep_id,
            config=config,
            dataset=meta,
            pool=spec.pool,
            limits=Limits(max_cost_usd=sweep.read_limits().max_cost_usd),
            preferences=Preferences(optimize_for=request.optimize_for),
            project=spec.project,
            owner=spec.owner,
        )
        return choose(sweep.root, wanted).placements

    base = places(spec.config)
    require_known(given_to_this_run(), (place.pool for place in base))
    elsewhere = PrefectLauncher(request.store, spec.project, spec.owner)
    run = SweepRun(
        sweep,
        make_launcher=lambda job: HereLauncher(machine) if here else elsewhere,
        places=(lambda config: base) if here else places,
        here=here,
        over_budget=(lambda: None) if here else BudgetWatch(sweep.root, spec.project, spec.owner),
        timeouts=timeouts,
        board=board,
        cancelled=lambda: watch.request is not None,
    )
    with watch.polled():  # around the stop as well: it must not be interrupted by the request that it serves
        try:
            return run.run()
        except TerminationSignal:
            stop = watch.requested()
            if stop is not None:
                heartbeat.finish()
            run.leave(stop.reason if stop else "the flow run was asked to stop (SIGTERM)", stop is not None)
            if watch.paused:
                return stay_paused("the sweep is paused; Resume goes on from there")
            raise


if __name__ == "__main__":
    import sys

    tune_nanogpt(space_file=sys.argv[1], sweep=sys.argv[2] if len(sys.argv) > 2 else "")
