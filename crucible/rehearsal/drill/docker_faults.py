"""What a drill does to a run in a container: each fault finds the container of the current attempt and strikes there.

Nothing here goes by process ids on record: a container has process ids of its own, which mean other processes outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from crucible.local.services import DOCKER_WORKER
from crucible.local.state import State
from crucible.pools.docker.engine import connect
from crucible.rehearsal.docker_engine import OwnEngine
from crucible.rehearsal.drill.faults import PROCESS_FAULTS, Fault
from crucible.rehearsal.drill.pauses import Wake, pauses
from crucible.rehearsal.drill.scene import Scene

if TYPE_CHECKING:
    from docker.models.containers import Container

_ALSO_HERE = ("kill-supervisor", "restart-server")
_HOG_MIB = 96
_ROOM_MIB = 32
"""Left free when memory is taken away; the hog needs more, and the trainer, being larger, is what the kernel kills."""


def docker_faults(engine: OwnEngine | None, start_worker: Callable[[], object]) -> list[Fault]:
    """All faults of the pool. An engine that is not the drill's own is never killed."""

    def restart_worker(scene: Scene) -> bool:
        record = State.load(scene.home).services[DOCKER_WORKER]
        if (process := record.find()) is not None:
            process.kill()
            process.wait(10)
        start_worker()
        return True

    faults = [
        Fault("docker-stop", "docker stop", _on_container(lambda c: c.stop(timeout=60)), with_notice=True),
        Fault("docker-kill", "docker kill", _on_container(lambda c: c.kill())),
        Fault("out-of-memory", "the container reaches its memory limit", _on_container(_take_memory)),
        Fault("restart-worker", "SIGKILL to the worker, and a new one", restart_worker, ends_attempt=False),
    ]
    if engine is not None:

        def restart_engine(_: Scene) -> bool:
            engine.kill()
            engine.start()
            return True

        faults.append(Fault("restart-engine", "the Docker engine is killed and started again", restart_engine))
    also_here = [fault for fault in PROCESS_FAULTS if fault.name in _ALSO_HERE]
    return [*faults, *also_here, *pauses(_freeze, "docker pause")]


def _on_container(strike: Callable[[Any], object]) -> Callable[[Scene], bool]:
    def find_and_strike(scene: Scene) -> bool:
        with _container(scene) as container:
            if container is not None:
                strike(container)
            return container is not None

    return find_and_strike


def _freeze(scene: Scene) -> Wake | None:
    with _container(scene) as container:
        if container is None:
            return None
        container.pause()
        name = str(container.id)

    def wake() -> None:
        client = connect()
        try:
            client.containers.get(name).unpause()
        finally:
            client.close()

    return wake


@contextmanager
def _container(scene: Scene) -> Iterator[Container | None]:
    """The running container of the current attempt."""
    attempt = scene.attempt
    client = connect()
    try:
        labels = [f"crucible.job={scene.job.job_id}", f"crucible.attempt={attempt.number if attempt else 0}"]
        yield next(iter(client.containers.list(filters={"label": labels})), None)
    finally:
        client.close()


def _take_memory(container: Container) -> None:
    """Lower the limit to what is in use and a little more, then use more from inside."""
    statistics = container.stats(stream=False)["memory_stats"]["stats"]
    used = statistics.get("total_rss", statistics.get("anon"))  # cgroup v1, v2: what cannot be given back
    limit = int(used) + (_ROOM_MIB << 20)
    container.update(mem_limit=limit, memswap_limit=limit)
    container.exec_run(["python", "-c", f"print(len(b'x' * ({_HOG_MIB} << 20)))"])
