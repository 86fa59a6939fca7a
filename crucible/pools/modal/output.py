"""What a sandbox prints, line by line, in its flow run's logs."""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter, deque
from collections.abc import AsyncIterable, Callable
from uuid import UUID

from grpclib import GRPCError
from modal import Sandbox
from modal import exception as errors
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

STREAMS = ("stdout", "stderr")
_LOGGER_PREFIX = "prefect.flow_runs.sandbox."
_PAGE = 200
# What Prefect prints of its own log lines in the sandbox; it has sent those to the server by itself.
_SENT_BY_PREFECT = re.compile(r"^\d\d:\d\d:\d\d\.\d{3} \| [A-Z]+ *\| (Flow|Task) run ")
_LAST_LINES = 20

logger = logging.getLogger(__name__)


class Output:
    """Follows both streams of a sandbox; `last_lines` are for the message about a bad end.

    Args:
        sandbox: whose output it is.
        show: takes the name of a stream and a line of it; None shows nothing.
        shown: how many lines of each stream an earlier worker has shown.
    """

    def __init__(
        self, sandbox: Sandbox, show: Callable[[str, str], None] | None, shown: Counter[str] | None = None
    ) -> None:
        self._sandbox, self._show = sandbox, show
        self._shown = Counter[str]() if shown is None else shown
        self._last: deque[str] = deque(maxlen=_LAST_LINES)

    @property
    def last_lines(self) -> str:
        return "\n".join(self._last)

    async def follow(self) -> None:
        """Read to the end of the output. Lost output never decides how a run ends."""
        await asyncio.gather(*(self._follow(name, getattr(self._sandbox, name)) for name in STREAMS))

    async def _follow(self, name: str, lines: AsyncIterable[str]) -> None:
        try:
            async for line in lines:
                self._handle(name, line.rstrip("\n"))
        except (errors.Error, GRPCError, OSError) as error:
            logger.warning("Lost the %s of sandbox %s: %s", name, self._sandbox.object_id, error)

    def _handle(self, name: str, line: str) -> None:
        self._last.append(line)
        if not line or self._show is None or _SENT_BY_PREFECT.match(line):
            return
        if self._shown[name] > 0:
            self._shown[name] -= 1
        else:
            self._show(name, line)


async def lines_shown(client: PrefectClient, flow_run_id: UUID) -> Counter[str]:
    """How many lines of each stream are in the flow run's logs."""
    shown: Counter[str] = Counter()
    only = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
    offset = 0
    while page := await client.read_logs(only, limit=_PAGE, offset=offset):
        shown.update(log.name.removeprefix(_LOGGER_PREFIX) for log in page if log.name.startswith(_LOGGER_PREFIX))
        offset += len(page)
    return shown
