"""The stage of a drill in Docker: the local set-up, the pool `docker-gpu` on the CPU, and its worker.

Where no engine runs, one is started in the drill's folder. Only such an engine is killed; one that was there before is
somebody's, and the drill then does without that fault.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crucible.pools.docker.containers import containers_of
from crucible.pools.docker.images import Recipe, build
from crucible.rehearsal.docker_engine import OwnEngine, an_engine
from crucible.rehearsal.drill.docker_faults import docker_faults
from crucible.rehearsal.drill.stage import Stage, local_stage

POOL = "docker-gpu"
_END_SECONDS = 60.0


@dataclass
class DockerStage(Stage):
    """A local set-up whose attempts run in containers."""

    def replace_machine(self) -> None:
        """Nothing to do: every container is a new machine."""

    def still_running(self) -> list[str]:
        """Containers that outlived the job."""
        deadline = time.monotonic() + _END_SECONDS
        while (left := containers_of(self.home.root)) and time.monotonic() < deadline:
            time.sleep(0.5)
        return [f"container {container.name}" for container in left]


@contextmanager
def docker_stage(folder: Path, *, s3: bool = False, image: str | None = None) -> Iterator[Stage]:
    """Bring up everything below `folder`, with `image` or that of the tree as it is; take it down at the end.

    Raises `ServiceError` when no engine answers and none can be started, or a part does not come up.
    """
    before = os.environ.get("DOCKER_HOST")
    started = an_engine(folder / "engine")
    try:
        with local_stage(folder, s3=s3) as local:
            up = ("up", "--pool", POOL, "--gpus", "0", "--image", image or build(Recipe("cpu")))
            local.crucible(*up)
            faults = docker_faults(OwnEngine.in_use(), lambda: local.crucible(*up))
            yield DockerStage(local.home, local.environment, local.store, faults, {"pool": POOL}, local.metadata)
    finally:
        if started:
            started.stop()
            os.environ.pop("DOCKER_HOST") if before is None else os.environ.update(DOCKER_HOST=before)
