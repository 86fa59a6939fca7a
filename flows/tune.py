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

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from crucible.config import TrainConfig
from crucible.datasets.finished import resolve_dataset
from crucible.datasets.meta import require_block_size
from crucible.errors import ConfigError
from crucible.estimate.ranking import Preferences
from crucible.jobs.records import Limits
from crucible.jobs.status import JobState
from crucible.placement.choice import PlacementRequest
from crucible.supervision.retry_policy import Placement
from crucible.sweeps.kinds import trial_config
from crucible.sweeps.records import SweepSpec, SweepStatus
from crucible.sweeps.search import read_space, rungs
from crucible.sweeps.sweep import Sweep
from crucible.tune_config import MOST_PARALLEL
from flows.evaluate import evaluate
from flows.forms import takes
from flows.parameters import TuneRequest
from flows.preprocess import preprocess
from tasks.console import outlive_the_console
from tasks.ending import end_as, without_heartbeat
from tasks.initial import settle
from tasks.placing import choose
from tasks.sweep_supervising import SupervisedSweep, SweepRequest, supervised_sweep


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
    asked = SweepRequest(sweep_name(), request.store, request.project, request.owner)
    return end_as(supervised_sweep(asked, lambda run: _tune(request, run)))


def _tune(request: TuneRequest, run: SupervisedSweep) -> SweepStatus:
    run.track(request.tracker)
    if request.space or request.space_file or not run.sweep.exists():
        _record(request, run)
    sweep, spec = run.sweep, run.sweep.read_spec()
    if (base := spec.config) is None:
        raise ConfigError(f"sweep: {sweep.sweep_id} searches the settings of a script; start it with tune-script")
    run.set_limits(request.given_limits())
    meta = resolve_dataset(sweep.root, spec.dataset).meta

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

    status = run.run_trials(lambda job: places(job.config or base), places(base))
    if status.state is JobState.COMPLETED and request.run_evaluation and (best := sweep.best()) is not None:
        with without_heartbeat():
            evaluate(job=best.job_id, store=request.store)
        run.board.publish(sweep.read_trials())
    return status


def _record(request: TuneRequest, run: SupervisedSweep) -> None:
    """Record the sweep and put its dataset into the store; what the request leaves open is decided here, once."""
    known = run.sweep.read_spec() if run.sweep.exists() else None
    space = read_space(request, run.request.name)
    start = settle(request.draft(), run.root, (known.config, known.init_source) if known else (None, ""))
    base = start.config
    if (base.init_from or "").startswith("resume:"):
        raise ConfigError("init_from: resume: goes on with one training; a sweep starts each trial, so leave it out")
    space.require_valid_trials(lambda values: trial_config(base, values), request.sampler)
    ladder = rungs(request, base.max_iters)
    with without_heartbeat():
        digest = preprocess(dataset=request.dataset, store=request.store)
    meta = resolve_dataset(run.root, digest).meta
    start.require_dataset(meta)
    for values in space.corners():
        require_block_size(meta, trial_config(base, values).block_size)
        start.require_shape(values)
    parallelism, threads = run.machine_share(request.pool, request.parallelism, base.threads)
    spec = SweepSpec(
        sweep_id=run.request.name,
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
        threads=threads,
        project=request.project,
        owner=request.owner,
    )
    Sweep.create(run.root, spec)


if __name__ == "__main__":
    import sys

    tune_nanogpt(space_file=sys.argv[1], sweep=sys.argv[2] if len(sys.argv) > 2 else "")
