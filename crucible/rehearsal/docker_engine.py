"""A Docker engine for drills and tests, run by `scripts/docker_engine.sh`: one that may be killed."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from crucible.errors import ServiceError
from crucible.pools.docker.engine import connect
from crucible.pools.docker.images import PROJECT

SCRIPT = PROJECT / "scripts" / "docker_engine.sh"
_MARK = "crucible-engine"


@dataclass(frozen=True)
class OwnEngine:
    """The engine of a folder."""

    folder: Path

    @property
    def host(self) -> str:
        """For `DOCKER_HOST`."""
        return f"unix://{self.folder}/docker.sock"

    @classmethod
    def in_use(cls) -> OwnEngine | None:
        """The engine that `DOCKER_HOST` names, if it is one of this kind."""
        folder = Path(os.environ.get("DOCKER_HOST", "").removeprefix("unix://")).parent
        return cls(folder) if (folder / _MARK).is_file() else None

    def start(self) -> None:
        """Start it unless it runs, installing Debian's package where there is none. Raises `ServiceError`."""
        self._run("start")

    def kill(self) -> None:
        """SIGKILL, as when it crashes."""
        self._run("kill")

    def stop(self) -> None:
        """Stop it with its containers."""
        self._run("stop")

    def _run(self, command: str) -> None:
        done = subprocess.run([SCRIPT, command, self.folder], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServiceError(f"{SCRIPT.name} {command}: {done.stderr.strip().removeprefix('error: ')}")


def an_engine(folder: Path) -> OwnEngine | None:
    """Make sure that an engine answers: the one that is there (None), or one started in `folder`.

    Sets `DOCKER_HOST` for the latter. Raises `ServiceError` when there is none and none can be started.
    """
    try:
        connect().close()
    except ServiceError:
        engine = OwnEngine(folder)
        engine.start()
        os.environ["DOCKER_HOST"] = engine.host
        return engine
    return None
