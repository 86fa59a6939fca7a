"""The engine that the local worker loads before there is a flow run for it. Real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.settings import get_current_settings
from prefect.utilities import processutils

from crucible.pools.local.prewarmed import ENGINE, PrewarmedEngine

NO_ID = {"PREFECT__FLOW_RUN_ID": "no-id"}


def environment(**changes: str) -> dict[str, str]:
    """What Prefect's starter would give to a flow run's process, of a run whose id is none."""
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    return {**os.environ, **settings, **NO_ID, **changes}


async def start(command: list[str], env: dict[str, str], folder: Path) -> int:
    """As Prefect does it, to the end of the process; returns its pid."""
    pids: list[int] = []

    class Started:
        def started(self, pid: int) -> None:
            pids.append(pid)

    process = await processutils.run_process(
        command,
        env=env,
        cwd=folder,
        stream_output=True,
        task_status=Started(),  # type: ignore[call-overload]
    )
    assert process.returncode == 1, "the engine refuses the id"
    return pids[0]


def with_a_prewarmed_engine(scenario: Callable[[PrewarmedEngine], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with PrewarmedEngine() as prewarmed:
            await scenario(prewarmed)
            (left,) = [
                child for child in psutil.Process().children() if "crucible.pools.local.engine" in child.cmdline()
            ]
        assert not left.is_running()

    asyncio.run(run())


def test_a_flow_run_gets_the_prewarmed_engine_and_the_next_one_is_loaded(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario(prewarmed: PrewarmedEngine) -> None:
        for _ in range(2):
            assert prewarmed._process is not None
            expected = prewarmed._process.pid
            assert await start(ENGINE, environment(), tmp_path) == expected

    with_a_prewarmed_engine(scenario)
    assert capfd.readouterr().err.count("Invalid flow run id") == 2, "it says what a new process says"


def test_other_settings_get_a_process_that_is_loaded_with_them(tmp_path: Path) -> None:
    changes = {"PREFECT_LOGGING_LEVEL": "DEBUG", "PYTHONPATH": "/elsewhere"}

    async def scenario(prewarmed: PrewarmedEngine) -> None:
        assert prewarmed._process is not None
        unfit = prewarmed._process.pid
        assert await start(ENGINE, environment(**changes), tmp_path) != unfit
        assert prewarmed._process.pid != unfit
        fit = prewarmed._process.pid
        assert await start(ENGINE, environment(**changes), tmp_path) == fit, "the next one is loaded with them"

    with_a_prewarmed_engine(scenario)


def test_other_commands_are_not_concerned_and_an_engine_that_has_died_is_no_loss(tmp_path: Path) -> None:
    async def scenario(prewarmed: PrewarmedEngine) -> None:
        assert prewarmed._process is not None
        waiting = prewarmed._process
        await start([sys.executable, "-c", "raise SystemExit(1)"], environment(), tmp_path)
        assert prewarmed._process is waiting

        os.kill(waiting.pid, signal.SIGKILL)
        await waiting.wait()
        assert await start(ENGINE, environment(), tmp_path) != waiting.pid

    with_a_prewarmed_engine(scenario)


def test_it_goes_when_its_worker_goes() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "crucible.pools.local.engine"], input=b"", capture_output=True, check=False, timeout=600
    )
    assert (process.returncode, process.stdout, process.stderr) == (0, b"", b"")
