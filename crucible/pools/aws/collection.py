"""What Prefect loads of us into every worker process, as a `prefect.collections` entry point.

With the `aws` extra installed, any ECS worker gets the observer's fence and the cancellation of waiting runs.
"""

from __future__ import annotations

import importlib.util


def install() -> None:
    """Both mends of prefect-aws, in this process."""
    from crucible.prefect_compat import ecs_cancellation as cancellation
    from crucible.prefect_compat import ecs_observer as observer

    observer.install()
    cancellation.install()


if importlib.util.find_spec("prefect_aws") is not None:
    install()
