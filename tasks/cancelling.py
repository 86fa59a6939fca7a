"""Whether a person has cancelled the flow run that this process is in.

Prefect's worker tells the process by a signal. That signal does not come when the worker that started the process is
gone, or was without the server for a minute, after which it heeds no cancellation any more (3.8). So whoever supervises
looks for itself as well, lest a cancelled job train on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

LOOK_SECONDS = 10.0


class CancellationWatch:
    """Looks at the flow run's state every so often."""

    def __init__(self, cancelled: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._cancelled, self._clock = cancelled, clock
        self._next = clock() + LOOK_SECONDS
        self._seen = False

    def noticed(self) -> bool:
        """True from the second look on that finds it cancelled: the first leaves the worker time for its signal."""
        if self._clock() < self._next:
            return False
        self._next = self._clock() + LOOK_SECONDS
        before, self._seen = self._seen, self._cancelled()
        return before and self._seen


def being_cancelled() -> bool:
    """Whether a person cancelled the flow run this code is in; False when the server cannot be asked."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(flow_run.id or "")).state
    except (httpx.HTTPError, PrefectException, ValueError):
        return False
    return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)
