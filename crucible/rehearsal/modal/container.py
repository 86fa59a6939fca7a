"""One container of the stand-in: a real local process tree that starts, is signalled and dies as a whole.

On Linux the tree gets its own PID and mount namespace, so that nothing in it outlives its first process (an orphan that
went on training would make a rehearsal prove too much) and volumes appear under their real paths. Elsewhere the
descendants are looked up and killed one by one, and volumes are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from crucible.errors import ServiceError

_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")


@functools.cache
def isolation() -> tuple[str, ...]:
    """The command prefix that puts a process tree into namespaces of its own; empty where the system has none."""
    for prefix in (_NAMESPACES, (*_NAMESPACES, "--user", "--map-root-user")):
        with contextlib.suppress(OSError):
            if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
                return prefix
    return ()


class Container:
    """A running command with its output in `folder/stdout` and `folder/stderr`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(
        cls,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        folder: Path,
        workdir: Path,
        volumes: Mapping[str, Path],
    ) -> Container:
        """Start `argv` with exactly `env`; `volumes` maps mount paths to folders.

        Raises:
            OSError: the command cannot be started.
            ServiceError: volumes were asked for on a system without mount namespaces.
        """
        prefix = isolation()
        if volumes and not prefix:
            raise ServiceError("volumes: the Modal stand-in can mount them only on Linux with unshare(1)")
        if prefix:
            steps = ["set -e"]
            for path, source in volumes.items():
                steps += [
                    f"mkdir -p {shlex.quote(path)}",
                    f"mount --bind {shlex.quote(str(source))} {shlex.quote(path)}",
                ]
            argv = [*prefix, "sh", "-c", "; ".join([*steps, 'exec "$@"']), "sh", *argv]
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = await asyncio.create_subprocess_exec(
                *argv,
                env=dict(env),
                cwd=workdir,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        return cls(process)

    async def wait(self) -> int:
        """Wait for the first process and let nothing survive it; returns the exit code as a shell would say it."""
        code = await self._process.wait()
        self.kill()
        return code if code >= 0 else 128 - code

    def signal_first_process(self, number: signal.Signals) -> None:
        """Send a signal to the container's first process only, as a host does."""
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            first = psutil.Process(self._process.pid)
            if isolation():
                first = next(iter(first.children()), first)
            os.kill(first.pid, number)

    def kill(self) -> None:
        """Kill the whole tree at once, without a signal that anything inside could handle."""
        tree = self._tree()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for process in tree:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def freeze(self) -> None:
        """Stop every process where it stands: the container answers nothing any more, and is still billed."""
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        """Let a frozen container go on."""
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def _tree(self) -> list[psutil.Process]:
        try:
            root = psutil.Process(self._process.pid)
            return [*root.children(recursive=True), root]
        except psutil.NoSuchProcess:
            return []
