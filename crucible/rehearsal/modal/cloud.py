"""What the stand-in remembers, and how a sandbox lives there: queued, started, ended, billed."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import string
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from modal_proto import api_pb2 as pb

from crucible.errors import ServiceError
from crucible.rehearsal.modal.container import Container

Result = pb.GenericResult
_BASE62 = string.ascii_letters + string.digits
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Modal's floor for what a sandbox is billed, in cores and GiB.
_LEAST_CORES, _LEAST_GIB = 0.125, 0.125


def new_id(prefix: str, length: int = 22, alphabet: str = _BASE62) -> str:
    return f"{prefix}-" + "".join(secrets.choice(alphabet) for _ in range(length))


@dataclass(frozen=True)
class SandboxView:
    """One sandbox as a test or a drill sees it; `status` is `QUEUED`, `RUNNING`, or the end that Modal would name;
    `started_at` is in unix seconds, 0 before the start."""

    id: str
    name: str
    backend: str
    status: str
    exit_code: int | None
    command: tuple[str, ...]
    env: Mapping[str, str]
    tags: Mapping[str, str]
    gpu: str
    gpu_count: int
    cpu_cores: float
    memory_mib: int
    timeout_seconds: int
    regions: tuple[str, ...]
    cloud: str
    image: tuple[str, ...]
    volumes: Mapping[str, str]
    started_at: float
    seconds: float

    @property
    def over(self) -> bool:
        return self.exit_code is not None


@dataclass
class Sandbox:
    """The stand-in's own record of a sandbox. Times are unix seconds; 0 means not yet."""

    id: str
    task_id: str
    app_id: str
    definition: pb.Sandbox
    env: dict[str, str]
    tags: dict[str, str]
    folder: Path
    v2: bool
    created: float = field(default_factory=time.time)
    started: float = 0.0
    finished: float = 0.0
    container: Container | None = None
    result: pb.GenericResult | None = None
    forced_status: int | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    life: asyncio.Task[None] | None = None

    @property
    def gpu(self) -> str:
        return str(self.definition.resources.gpu_config.gpu_type)

    @property
    def gpu_count(self) -> int:
        return max(1, self.definition.resources.gpu_config.count) if self.gpu else 0


class Cloud:
    """Apps, images, secrets, volumes and sandboxes, and the dials that make things go wrong."""

    def __init__(
        self, folder: Path, token: tuple[str, str], image_workdir: Path | None, image_env: dict[str, str]
    ) -> None:
        self.folder = folder
        self.token = token
        self.image_workdir, self.image_env = image_workdir, image_env
        self.router_url = ""
        self.apps: dict[str, str] = {}
        self.images: dict[str, pb.Image] = {}
        self.built: set[str] = set()
        self.secrets: dict[str, dict[str, str]] = {}
        self.named_secrets: dict[str, str] = {}
        self.volumes: dict[str, str] = {}
        self.sandboxes: dict[str, Sandbox] = {}
        self.calls: list[str] = []
        self.unknown_calls: list[str] = []
        self.capacity: dict[str, int] = {}
        self.failing_builds: list[str] = []
        self.down = False
        self.seconds_until_billed = 0.0
        # Dollars per second of one GPU, core or GiB: round figures of the right size; no price is promised here.
        self.rates = {"CPU": 1.3e-5, "Memory": 2.2e-6, "T4": 1.6e-4, "L4": 2.2e-4, "A100-80GB": 7e-4, "H100": 1.1e-3}
        self._changed = asyncio.Condition()

    async def changed(self) -> None:
        """Wake everyone who waits for the state to be something else."""
        async with self._changed:
            self._changed.notify_all()

    async def wait_until(self, true: Callable[[], bool]) -> None:
        """Wait for a change after which `true()` holds."""
        async with self._changed:
            await self._changed.wait_for(true)

    def create(
        self, request: pb.SandboxCreateRequest | pb.SandboxCreateV2Request, env: dict[str, str], v2: bool
    ) -> Sandbox:
        """Accept a sandbox; it starts as soon as its GPUs are free."""
        sandbox_id = new_id("sb", 26, _CROCKFORD) if v2 else new_id("sb")
        sandbox = Sandbox(
            id=sandbox_id,
            task_id=new_id("ta", 26, _CROCKFORD) + ("V" if v2 else ""),
            app_id=request.app_id,
            definition=request.definition,
            env=env,
            tags={tag.tag_name: tag.tag_value for tag in request.tags},
            folder=self.folder / "sandboxes" / sandbox_id,
            v2=v2,
        )
        self.sandboxes[sandbox_id] = sandbox
        sandbox.life = asyncio.create_task(self._live(sandbox))
        return sandbox

    async def _live(self, sandbox: Sandbox) -> None:
        await self.changed()
        await self.wait_until(lambda: sandbox.result is not None or self._has_room(sandbox))
        if sandbox.result is not None:
            return
        sandbox.started = time.time()
        try:
            sandbox.container = await self._start(sandbox)
        except (OSError, ServiceError) as error:
            await self._end(sandbox, Result.GENERIC_STATUS_INIT_FAILURE, 127, str(error))
            return
        await self.changed()
        try:
            async with asyncio.timeout(sandbox.definition.timeout_secs):
                code = await asyncio.shield(sandbox.container.wait())
        except TimeoutError:
            code = await self.stop(sandbox, Result.GENERIC_STATUS_TIMEOUT)
        by_code = {0: Result.GENERIC_STATUS_SUCCESS, 127: Result.GENERIC_STATUS_INIT_FAILURE}
        status = sandbox.forced_status or by_code.get(code, Result.GENERIC_STATUS_FAILURE)
        await self._end(sandbox, status, code)

    def _has_room(self, sandbox: Sandbox) -> bool:
        room = self.capacity.get(sandbox.gpu)
        if room is None:
            return True
        taken = sum(s.gpu_count for s in self.sandboxes.values() if s.gpu == sandbox.gpu and s.started and not s.result)
        return taken + sandbox.gpu_count <= room

    async def _start(self, sandbox: Sandbox) -> Container:
        definition = sandbox.definition
        temporary = sandbox.folder / "tmp"
        temporary.mkdir(parents=True)
        env = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(sandbox.folder),
            "TMPDIR": str(temporary),
            "LANG": "C.UTF-8",
            "MODAL_SANDBOX_ID": sandbox.id,
            "MODAL_TASK_ID": sandbox.task_id,
            "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_REHEARSAL",
            **self.image_env,
            **sandbox.env,
        }
        volumes = {m.mount_path: self.folder / "volumes" / m.volume_id for m in definition.volume_mounts}
        for source in volumes.values():
            source.mkdir(parents=True, exist_ok=True)
        return await Container.start(
            list(definition.entrypoint_args) or ["sleep", "infinity"],
            env=env,
            folder=sandbox.folder,
            workdir=Path(definition.workdir) if definition.workdir else self.image_workdir or sandbox.folder,
            volumes=volumes,
        )

    async def _end(self, sandbox: Sandbox, status: int, code: int, why: str = "") -> None:
        sandbox.result = Result(status=status, exitcode=code, exception=why)  # type: ignore[arg-type]
        sandbox.finished = time.time()
        sandbox.over.set()
        await self.changed()

    async def stop(
        self,
        sandbox: Sandbox,
        status: int,
        *,
        notice: bool = False,
        grace_seconds: float = 0.0,
    ) -> int:
        """End a sandbox from outside; with `notice`, SIGINT to its first process and a grace come before the kill.

        Returns the exit code, 137 for a sandbox that never started.
        """
        if sandbox.result is not None:
            return int(sandbox.result.exitcode)
        sandbox.forced_status = status
        if sandbox.container is None:
            await self._end(sandbox, status, 137)
            return 137
        if notice:
            sandbox.container.signal_first_process(signal.SIGINT)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await sandbox.over.wait()
        sandbox.container.kill()
        return await sandbox.container.wait()

    def cost(self, sandbox: Sandbox) -> dict[str, float]:
        """Dollars by resource so far; nothing yet where the figures are late, as Modal's are by minutes."""
        now = time.time()
        if not sandbox.started or now < (sandbox.finished or now) + self.seconds_until_billed:
            return {}
        seconds = (sandbox.finished or now) - sandbox.started
        wanted = sandbox.definition.resources
        dollars = {
            "CPU": seconds * self.rates["CPU"] * max(wanted.milli_cpu / 1000, _LEAST_CORES),
            "Memory": seconds * self.rates["Memory"] * max(wanted.memory_mb / 1024, _LEAST_GIB),
        }
        if sandbox.gpu:
            dollars[sandbox.gpu] = seconds * self.rates.get(sandbox.gpu, 1e-3) * sandbox.gpu_count
        return dollars

    def _steps(self, image_id: str) -> list[str]:
        """The Dockerfile commands of an image, those of the images it builds on first."""
        image = self.images.get(image_id)
        if image is None:
            return []
        below = [step for base in image.base_images for step in self._steps(base.image_id)]
        return below + list(image.dockerfile_commands)

    def view(self, sandbox: Sandbox) -> SandboxView:
        """The outside view of one sandbox, as it is now."""
        definition, result = sandbox.definition, sandbox.result
        status = "RUNNING" if sandbox.started else "QUEUED"
        if result is not None:
            status = Result.GenericStatus.Name(result.status).removeprefix("GENERIC_STATUS_")
        return SandboxView(
            id=sandbox.id,
            name=definition.name,
            backend="v2" if sandbox.v2 else "v1",
            status=status,
            exit_code=None if result is None else result.exitcode,
            command=tuple(definition.entrypoint_args),
            env=dict(sandbox.env),
            tags=dict(sandbox.tags),
            gpu=sandbox.gpu,
            gpu_count=sandbox.gpu_count,
            cpu_cores=definition.resources.milli_cpu / 1000,
            memory_mib=definition.resources.memory_mb,
            timeout_seconds=definition.timeout_secs,
            regions=tuple(definition.scheduler_placement.regions),
            cloud=definition.cloud_provider_str,
            image=tuple(self._steps(definition.image_id)),
            volumes={m.mount_path: m.volume_id for m in definition.volume_mounts},
            started_at=sandbox.started,
            seconds=(sandbox.finished or time.time()) - sandbox.started if sandbox.started else 0.0,
        )
