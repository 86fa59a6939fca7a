"""What every task that uses the network has in common.

    @task(name="fetch dataset", **NETWORK_RETRIES)

Only the network is retried. A wrong sha256 or broken text stays wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict, TypeVar, cast

from prefect.utilities.annotations import quote

from crucible.errors import SourceUnreachable, StoreUnavailable

T = TypeVar("T")


class _Retries(TypedDict):
    retries: int
    retry_delay_seconds: list[float]
    retry_jitter_factor: float
    retry_condition_fn: Callable[[Any, Any, Any], bool]


def network_failed(_task: Any, _task_run: Any, state: Any) -> bool:
    """Whether a task failed for a reason that another attempt may fix."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, StoreUnavailable | SourceUnreachable)


NETWORK_RETRIES: _Retries = {
    "retries": 3,
    "retry_delay_seconds": [2, 5, 10],
    "retry_jitter_factor": 1,
    "retry_condition_fn": network_failed,
}


def quoted(value: T) -> T:
    """A task's argument that Prefect passes on as it is, instead of searching it for futures.

    The task receives `value` itself, so that is the type a caller sees.
    """
    return cast(T, quote(value))
