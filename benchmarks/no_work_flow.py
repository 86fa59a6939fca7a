"""A sweep carried out in a process of its own, whose memory can be watched: `no_work_flow STORE SWEEP [flow-runs]`.

With `flow-runs` every attempt is a flow run of `train/local`, as it is on every pool but the sweep's own machine.
"""

from __future__ import annotations

import sys

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from crucible.jobs.status import JobState
from crucible.store import store_at
from crucible.supervision.retry_policy import Placement, Timeouts
from crucible.sweeps import Sweep
from tasks.launching import PrefectLauncher
from tasks.sweeping import SweepRun
from tasks.trials import HereLauncher, Machine


@flow(name="no-work", task_runner=ThreadPoolTaskRunner(max_workers=8), persist_result=False)
def no_work(store: str, sweep: str, here: bool) -> None:
    """What `tune-nanogpt` does on its own machine, without preprocessing and evaluation."""
    found = Sweep.open(store_at(store), sweep)
    machine = Machine(found.read_spec().parallelism, threads=1)
    status = SweepRun(
        found,
        make_launcher=lambda job: HereLauncher(machine) if here else PrefectLauncher(store, "default", ""),
        places=lambda config: [Placement("local")],
        here=here,
        timeouts=Timeouts(ended_and_silent=0.0, poll=0.2) if here else Timeouts(),
    ).run()
    assert status.state is JobState.COMPLETED, status.reason


if __name__ == "__main__":
    no_work(store=sys.argv[1], sweep=sys.argv[2], here="flow-runs" not in sys.argv[3:])
