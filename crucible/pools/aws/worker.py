"""The Prefect worker of an AWS pool, started with what prefect-aws takes only from the environment.

Its observer wants the event queue's name and a region in environment variables and silently does nothing without them;
what `crucible.pools.aws.collection` mends must be in the same process.
`python -m crucible.pools.aws.worker` is `prefect` with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from crucible.pools.aws.stack import StackState


def worker_environment(state: StackState, profile: str | None = None) -> dict[str, str]:
    """What the worker's environment needs beyond the usual: the event queue and the region."""
    environment = {
        "PREFECT_INTEGRATIONS_AWS_ECS_OBSERVER_SQS_QUEUE_NAME": state.outputs["TaskEventsQueue"],
        "AWS_DEFAULT_REGION": state.region,
        "AWS_REGION": state.region,
    }
    return environment | ({"AWS_PROFILE": profile} if profile else {})


def worker_command(pool: str) -> list[str]:
    """The command line that runs a worker of `pool`."""
    return [sys.executable, "-m", "crucible.pools.aws.worker", "worker", "start", "--pool", pool, "--type", "ecs"]


def run_worker(pool: str, state: StackState, profile: str | None = None) -> None:
    """Become the pool's worker: replaces this process, so that signals reach it. Does not return."""
    environment: Mapping[str, str] = {**os.environ, **worker_environment(state, profile)}
    command = worker_command(pool)
    os.execve(command[0], command, dict(environment))


def main() -> None:
    """`prefect`, with the mends of prefect-aws in place."""
    from prefect.cli import app

    from crucible.pools.aws import collection

    collection.install()
    sys.argv[0] = "prefect"
    app()


if __name__ == "__main__":
    main()
