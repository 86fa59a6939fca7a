"""A hook through which a worker can run a flow run in a process that it has started before.

Prefect's process worker supervises what it starts well: cancellation, exit codes, output, hooks. But it always starts a
new Python process. A `command` that hands over to a loaded process is no way around it: signals would reach the wrong
one of two processes. A `run()` of our own would have to copy that supervision from Prefect's private modules.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from anyio.abc import Process

from crucible.prefect_compat.patches import Patch

Take = Callable[[list[str], Mapping[str, Any]], Awaitable[Process | None]]
"""Gets a command and the options for its process; returns a process to use instead of a new one, or None."""

_take: Take | None = None


def use(take: Take | None) -> None:
    """Ask `take` before every process that Prefect starts from now on; None: ask nobody."""
    global _take
    _take = take


async def leave(process: Process) -> None:
    """End a process, if it has not ended, and close its pipes."""
    with suppress(ProcessLookupError):
        process.terminate()
    with anyio.CancelScope(shield=True):
        await process.aclose()


def _self_check() -> str | None:
    from prefect.runner import _starter_engine
    from prefect.utilities import processutils

    parameters = {name: p.kind for name, p in inspect.signature(processutils.open_process).parameters.items()}
    expected = {"command": inspect.Parameter.POSITIONAL_OR_KEYWORD, "kwargs": inspect.Parameter.VAR_KEYWORD}
    if getattr(processutils.open_process, "original", None) is None and parameters != expected:
        return f"open_process takes {', '.join(parameters)}"
    if "open_process" not in processutils.run_process.__code__.co_names:
        return "run_process does not call open_process"
    if vars(_starter_engine).get("run_process") is not processutils.run_process:
        return "flow runs are not started with run_process"
    return None


def _apply() -> None:
    from prefect.utilities import processutils

    original = processutils.open_process
    if hasattr(original, "original"):
        return

    @asynccontextmanager
    async def open_process(command: list[str], **options: Any) -> AsyncIterator[Process]:
        process = await _take(command, options) if _take else None
        if process is None:
            async with original(command, **options) as process:
                yield process
            return
        try:
            async with process:
                yield process
        finally:
            await leave(process)

    open_process.original = original  # type: ignore[attr-defined]
    processutils.open_process = open_process


PATCH = Patch(
    name="process-start",
    fault="Prefect's process worker starts every flow run in a new Python process, which loads Prefect again: 1.2 s of "
    "CPU time a run. No hook lets a worker pass it a process that has loaded it.",
    issue="https://github.com/PrefectHQ/prefect/issues/21944",
    versions="prefect 3.8.8 and 3.9.1",
    delete_when="ProcessWorker accepts a process starter of one's own, or a flow run starts in 0.3 s without it",
    self_check=_self_check,
    apply=_apply,
)
