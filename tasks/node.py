"""A further node of an attempt: `python -m tasks.node`, started by the pool beside the attempt's own flow run.

`CRUCIBLE_NODE_RANK` says which node it is. The attempt is named by --store, --job and --attempt, or is that of the flow
run whose id Prefect's variable has. It ends with 0 when the attempt is over.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import replace
from types import FrameType
from uuid import UUID

from prefect.client.orchestration import get_client

from crucible.agent.member import run_member
from crucible.agent.notices import Notice
from crucible.billing.machine_price import EC2_POOLS
from crucible.contract import DEFAULT_STOP_GRACE_SECONDS, Variable
from crucible.errors import ConfigError, CrucibleError
from crucible.jobs.job import Job
from tasks.machine import Machine
from tasks.nodes import further_node
from tasks.storage import open_store
from tasks.training import attempt_plan


class StopSignal:
    """A source of notices: the SIGTERM or SIGINT that this process has received."""

    def __init__(self) -> None:
        self._notice: Notice | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def poll(self) -> Notice | None:
        return self._notice

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._notice is None:
            grace = float(os.environ.get(Variable.STOP_GRACE_SECONDS) or DEFAULT_STOP_GRACE_SECONDS)
            reason = f"the node was asked to stop ({signal.Signals(number).name})"
            self._notice = Notice("signal", reason, time.time() + grace)


def main(arguments: list[str] | None = None) -> int:
    """Take part until the attempt is over; 1 when there is no such attempt."""
    parser = argparse.ArgumentParser("python -m tasks.node", description=__doc__)
    parser.add_argument("--store")
    parser.add_argument("--job")
    parser.add_argument("--attempt", type=int)
    given = parser.parse_args(arguments)
    stop = StopSignal()
    try:
        rank = int(os.environ.get(Variable.NODE_RANK) or 0)
        if rank < 1:
            raise ConfigError(f"{Variable.NODE_RANK} = {rank}: a further node has a number of 1 or more")
        store, name, number = (given.store, given.job, given.attempt) if given.job else attempt_of_flow_run()
        job = Job.open(open_store(store), name)
        launch = job.attempt(number).read_launch()
        if launch is None:
            raise ConfigError(f"attempt: {number} of {name} was never decided on")
        plan = attempt_plan(job, job.read_spec(), launch, further_node(rank))
        plan = replace(plan, sources=(*plan.sources, stop))
        if launch.pool in EC2_POOLS:  # each node is a request of its own, and may get another machine
            machine = Machine.here()
            plan = replace(plan, claim=lambda: machine.claim(number, launch), current_price=machine.current_price)
        run_member(job.attempt(number), plan, lambda line: print(f"[node {rank}] {line}", flush=True))
    except CrucibleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def attempt_of_flow_run() -> tuple[str, str, int]:
    """Store, job and attempt of the flow run that this node belongs to. Raises `ConfigError`."""
    run_id = os.environ.get("PREFECT__FLOW_RUN_ID")
    if not run_id:
        raise ConfigError("--job is missing, and PREFECT__FLOW_RUN_ID names no flow run")
    with get_client(sync_client=True) as client:
        parameters = client.read_flow_run(UUID(run_id)).parameters
    if not {"job", "attempt"} <= parameters.keys():
        raise ConfigError(f"flow run {run_id} is no attempt of a job; several nodes train one")
    return str(parameters.get("store", "default")), str(parameters["job"]), int(parameters["attempt"])


if __name__ == "__main__":
    sys.exit(main())
