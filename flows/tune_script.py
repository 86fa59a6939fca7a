"""`tune-script`: search for the best arguments of a script of your own, whatever happens to the machines in between.

`crucible tune --space 'lr: {loguniform: [1e-4, 1e-2]}' -- python train.py --lr={lr}` starts it from a folder; from
Prefect: `prefect deployment run tune-script`. Trials are jobs of the script, and everything else is as in
`tune-nanogpt`.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from crucible.jobs.status import JobState
from crucible.placement.script import place_script
from crucible.run_config import RunConfig
from crucible.sweeps.records import SweepSpec, SweepStatus
from crucible.sweeps.search import read_script_space, rungs
from crucible.sweeps.sweep import Sweep
from crucible.tune_config import MOST_PARALLEL, Objective, TuneSettings
from flows.forms import takes
from flows.parameters import TuneScriptRequest, sweep_limits
from flows.tune import sweep_name
from tasks.console import outlive_the_console
from tasks.ending import end_as, failing
from tasks.script_sweeps import evaluate_best, preprocess_once
from tasks.scripts import read_config_again, resolve
from tasks.sweep_supervising import SupervisedSweep, SweepRequest, supervised_sweep


@flow(
    name="tune-script",
    flow_run_name=sweep_name,
    # At most the sweep's parallelism of these threads is ever used.
    task_runner=ThreadPoolTaskRunner(max_workers=MOST_PARALLEL),  # type: ignore[arg-type]  # Prefect's hint is invariant
)
@takes(TuneScriptRequest)
def tune_script(**given: Any) -> State:
    """Search for the best arguments and variables of a script by running many jobs, most of them not for long."""
    outlive_the_console()
    request = TuneScriptRequest(**given)
    return end_as(failing(lambda: _supervise(request)))


def _supervise(request: TuneScriptRequest) -> State:
    config = read_config_again(request.code, request.given())
    asked = SweepRequest(sweep_name(), config.store, config.project, config.owner)
    return supervised_sweep(asked, lambda run: _tune(request, config, run))


def _tune(request: TuneScriptRequest, config: RunConfig, run: SupervisedSweep) -> SweepStatus:
    sweep, search = run.sweep, config.tune or TuneSettings()
    run.track(config.tracker)
    if not sweep.exists() or (request.names_a_search and not sweep.was_started_by(flow_run.id or "")):
        _record(request, config, search, run)
    run.set_limits(sweep_limits(search.max_trials, config.max_cost_usd, config.max_hours, config.finish_by))
    spec = sweep.read_spec()
    places = place_script(spec.pool, spec.resources).placements
    prepared = preprocess_once(run)
    if prepared is not None and prepared.state is not JobState.COMPLETED:
        return SweepStatus(state=prepared.state, reason=prepared.reason)
    status = run.run_trials(lambda _: places, places)
    best = sweep.best()
    if status.state is not JobState.COMPLETED or best is None:
        return status
    evaluated = evaluate_best(run, best.number)
    run.board.publish(sweep.read_trials())
    return status if evaluated is None else SweepStatus(state=evaluated.state, reason=evaluated.reason)


def _record(request: TuneScriptRequest, config: RunConfig, search: TuneSettings, run: SupervisedSweep) -> None:
    """Record the sweep and put its code into the store; what the request leaves open is decided here, once."""
    place_script(config.pool, config.resources)  # refuses what the pool cannot choose
    script = config.script()
    space = read_script_space(search, run.request.name, script)
    ladder = rungs(search, script.total_steps)
    script, code = resolve(run.root, request.code, request.data, config)
    parallelism, threads = run.machine_share(config.pool, search.parallelism)
    spec = SweepSpec(
        sweep_id=run.request.name,
        space=space.as_json(),
        sampler=search.sampler,
        schedule=search.schedule,
        ladder=ladder,
        reduction_factor=search.reduction_factor,
        seed=search.seed,
        parallelism=parallelism,
        script=script,
        code=code,
        resources=config.resources,
        preprocess=config.preprocess,
        evaluate=config.evaluate,
        objective=Objective(metric=search.metric, goal=search.goal),
        pool=config.pool,
        threads=threads,
        project=config.project,
        owner=config.owner,
    )
    Sweep.create(run.root, spec)
    if not spec.knows_total_steps and search.schedule != "none":
        get_run_logger().warning(
            "total_steps is not set, so every trial runs to its end; set it, and a checkpoint, to stop bad ones early"
        )
