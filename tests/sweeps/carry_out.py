"""Sweeps of trials without torch, and a process that carries one out, to be killed.

python -m tests.sweeps.carry_out STORE SWEEP
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from crucible.config import TrainConfig
from crucible.store import Store, store_at
from crucible.supervision.retry_policy import Placement, Timeouts
from crucible.sweeps import Space, Sweep, SweepLimits, SweepSpec, SweepStatus
from tasks.sweeping import SweepRun
from tasks.trials import HereLauncher, Machine

WORKLOAD = Path(__file__).with_name("workload.py")
LADDER = [2, 4, 8]


def new_sweep(store: Store, name: str, trials: int = 4, options: dict[str, Any] | None = None, **spec: Any) -> Sweep:
    """A sweep whose trials are processes that end at once."""
    command = [sys.executable, "-S", "-E", str(WORKLOAD), json.dumps({"steps": LADDER[-1], **(options or {})})]
    fields: dict[str, Any] = {
        "space": Space.parse({"learning_rate": {"loguniform": [1e-3, 1e-2]}}).as_json(),
        "sampler": "random",
        "schedule": "asha",
        "ladder": LADDER,
        "reduction_factor": 2,
        "parallelism": 2,
        "config": TrainConfig.preset("debug", max_iters=LADDER[-1], warmup_iters=1).model_dump(mode="json"),
        "command": command,
    }
    sweep = Sweep.create(store, SweepSpec(sweep_id=name, **(fields | spec)))
    sweep.set_limits(SweepLimits(max_trials=trials))
    return sweep


@flow(name="carry-out", task_runner=ThreadPoolTaskRunner(max_workers=8), persist_result=False)
def carry_out(store: str, sweep: str, usd_per_hour: float = 0.0) -> None:
    carry_on(Sweep.open(store_at(store), sweep), usd_per_hour)


def carry_on(sweep: Sweep, usd_per_hour: float = 0.0, cancelled: Callable[[], bool] = lambda: False) -> SweepStatus:
    """What `tune-nanogpt` does on its own machine; to be called in a flow."""
    machine = Machine(sweep.read_spec().parallelism, threads=1)
    return SweepRun(
        sweep,
        make_launcher=lambda job: HereLauncher(machine),
        places=lambda config: [Placement("local", usd_per_hour=usd_per_hour)],
        here=True,
        timeouts=Timeouts(ended_and_silent=0.0, poll=0.2),
        cancelled=cancelled,
    ).run()


if __name__ == "__main__":
    carry_out(store=sys.argv[1], sweep=sys.argv[2])
