"""`FakeModal`: a Modal that runs on this machine, with a handle on everything that can go wrong there."""

from __future__ import annotations

import asyncio
import random
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from grpclib.events import RecvRequest, listen
from grpclib.server import Server

from crucible.errors import ServiceError
from crucible.rehearsal.modal.cloud import Cloud, Result, Sandbox, SandboxView, new_id
from crucible.rehearsal.modal.command_router import CommandRouter
from crucible.rehearsal.modal.control_plane import ControlPlane

T = TypeVar("T")
_HOST = "127.0.0.1"
# Below the range that systems hand out to clients: a port there can be taken by somebody's connection at any moment.
_PORTS = range(20_000, 32_000)
_TIMEOUT_SECONDS = 60.0


class FakeModal:
    """Modal's control plane on a local port, with sandboxes as local processes.

    It runs in a thread of its own, so that a test or a drill can work beside it and cause faults by plain calls:

        with FakeModal() as modal:
            subprocess.run(["python", "uses_modal.py"], env={**os.environ, **modal.env})
            modal.preempt(modal.running()[0].id)

    Args:
        image_workdir: where sandboxes start that name no working folder, as an image's WORKDIR; default their own
            empty folder. The content of images is this machine's.
        image_env: variables that every sandbox has, as an image's ENV.
        grace_seconds: between the SIGINT of a preemption and the kill. Modal's SDK simulates 30.
    """

    def __init__(
        self,
        *,
        image_workdir: Path | None = None,
        image_env: Mapping[str, str] | None = None,
        grace_seconds: float = 30.0,
    ) -> None:
        self._image_workdir, self._image_env = image_workdir, dict(image_env or {})
        self._grace_seconds = grace_seconds
        self._token = (new_id("ak"), new_id("as"))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-modal", daemon=True)
        self._servers: list[Server] = []
        self.url = ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Serve on free local ports.

        Raises:
            ServiceError: no port is free.
        """
        self._folder = Path(tempfile.mkdtemp(prefix="fake-modal-"))
        self._thread.start()
        self._call(self._serve())
        return self

    def stop(self) -> None:
        """Kill what still runs, close the ports and remove the files."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_TIMEOUT_SECONDS)
        self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment for its `modal` SDK to come here and nowhere else."""
        token_id, token_secret = self._token
        return {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": token_id,
            "MODAL_TOKEN_SECRET": token_secret,
            "MODAL_CONFIG_PATH": str(self._folder / "no-config.toml"),
            "no_proxy": _HOST,
        }

    # What is there.

    def sandboxes(self) -> list[SandboxView]:
        """All sandboxes ever created, oldest first."""

        async def views() -> list[SandboxView]:
            return [self._cloud.view(sandbox) for sandbox in self._cloud.sandboxes.values()]

        return self._call(views())

    def running(self) -> list[SandboxView]:
        """Sandboxes that have started and not ended."""
        return [view for view in self.sandboxes() if view.status == "RUNNING"]

    def unknown_calls(self) -> list[str]:
        """Names of calls that came and that Modal may have but the stand-in does not: a test with any must fail."""
        return list(self._cloud.unknown_calls)

    def calls(self) -> list[str]:
        """Names of all calls to the control plane, in order."""
        return list(self._cloud.calls)

    def output(self, sandbox_id: str, stream: str = "stdout") -> str:
        """What a sandbox has printed so far to `stdout` or `stderr`."""
        file = self._cloud.sandboxes[sandbox_id].folder / stream
        return file.read_text(errors="replace") if file.exists() else ""

    def wait_for(
        self, true: Callable[[list[SandboxView]], bool], timeout: float = _TIMEOUT_SECONDS
    ) -> list[SandboxView]:
        """Wait until `true(sandboxes)` holds and return them.

        Raises:
            ServiceError: it did not come true within `timeout` seconds.
        """

        async def wait() -> list[SandboxView]:
            def views() -> list[SandboxView]:
                return [self._cloud.view(sandbox) for sandbox in self._cloud.sandboxes.values()]

            async with asyncio.timeout(timeout):
                await self._cloud.wait_until(lambda: true(views()))
            return views()

        try:
            return self._call(wait(), timeout + _TIMEOUT_SECONDS)
        except TimeoutError:
            seen = [(view.name, view.status, view.exit_code) for view in self.sandboxes()]
            raise ServiceError(
                f"nothing of the kind happened at the Modal stand-in within {timeout:g} s; its sandboxes: {seen}"
            ) from None

    # What goes wrong.

    def preempt(self, sandbox_id: str, *, grace_seconds: float | None = None, wait: bool = True) -> None:
        """Take a sandbox's machine away with notice: SIGINT to its first process, a grace, then the kill.

        With `wait=False` it returns at once and the rest happens meanwhile.
        """
        grace = self._grace_seconds if grace_seconds is None else grace_seconds
        stop = self._stop(sandbox_id, Result.GENERIC_STATUS_TERMINATED, notice=True, grace_seconds=grace)
        if wait:
            self._call(stop, grace + _TIMEOUT_SECONDS)
        else:
            asyncio.run_coroutine_threadsafe(stop, self._loop)

    def lose_host(self, sandbox_id: str) -> None:
        """The machine is gone between two instructions: no signal, no grace."""
        self._call(self._stop(sandbox_id, Result.GENERIC_STATUS_TERMINATED))

    def reach_lifetime(self, sandbox_id: str) -> None:
        """The sandbox's timeout is over, whatever the clock says: killed without a signal."""
        self._call(self._stop(sandbox_id, Result.GENERIC_STATUS_TIMEOUT))

    def run_out_of_memory(self, sandbox_id: str) -> None:
        """The kernel kills the sandbox for its memory: exit code 137 as after a preemption."""
        self._call(self._stop(sandbox_id, Result.GENERIC_STATUS_KERNEL_OOM_KILL))

    def freeze(self, sandbox_id: str) -> None:
        """Stop all processes of a sandbox without ending it."""
        self._container(sandbox_id).freeze()

    def thaw(self, sandbox_id: str) -> None:
        """Let a frozen sandbox go on."""
        self._container(sandbox_id).thaw()

    def set_capacity(self, gpu: str, count: int | None) -> None:
        """Let only `count` GPUs of a type be in use at once; more have to queue. None lifts the limit."""

        async def apply() -> None:
            if count is None:
                self._cloud.capacity.pop(gpu, None)
            else:
                self._cloud.capacity[gpu] = count
            await self._cloud.changed()

        self._call(apply())

    def fail_builds(self, text: str) -> None:
        """From now on an image build fails at any step that contains `text`."""
        self._cloud.failing_builds.append(text)

    def forget_images(self) -> None:
        """Delete every image, as a person may on Modal's pages."""
        self._cloud.images.clear()
        self._cloud.built.clear()

    def accept_token(self, accept: bool) -> None:
        """Whether the token that `env` gave out is (still, again) valid."""
        self._cloud.token = self._token if accept else (new_id("ak"), new_id("as"))

    def set_down(self, down: bool) -> None:
        """The control plane answers nothing but "unavailable", or comes back. Sandboxes go on meanwhile."""
        self._cloud.down = down

    def delay_bills(self, seconds: float) -> None:
        """Modal's cost figures of a sandbox appear only this long after its end."""
        self._cloud.seconds_until_billed = seconds

    def add_secret(self, name: str, values: dict[str, str]) -> None:
        """Create a named Secret in the workspace."""
        secret_id = new_id("st")
        self._cloud.secrets[secret_id] = dict(values)
        self._cloud.named_secrets[name] = secret_id

    # Inside.

    def _call(self, coroutine: Coroutine[Any, Any, T], timeout: float = _TIMEOUT_SECONDS) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    async def _serve(self) -> None:
        self._cloud = Cloud(self._folder, self._token, self._image_workdir, self._image_env)
        plane = ControlPlane(self._cloud)  # type: ignore[abstract]
        router = CommandRouter(self._cloud)  # type: ignore[abstract]
        router_server, plane_server = Server([router]), Server([plane])
        listen(plane_server, RecvRequest, plane.admit)
        self._cloud.router_url = f"http://{_HOST}:{await self._listen(router_server)}"
        self.url = f"http://{_HOST}:{await self._listen(plane_server)}"
        self._servers = [router_server, plane_server]

    @staticmethod
    async def _listen(server: Server) -> int:
        for port in random.sample(_PORTS, 50):
            try:
                await server.start(_HOST, port, family=socket.AF_INET)
            except OSError:
                continue
            return port
        raise ServiceError(f"no free port between {_PORTS.start} and {_PORTS.stop} for the Modal stand-in")

    async def _close(self) -> None:
        for sandbox in self._cloud.sandboxes.values():
            await self._cloud.stop(sandbox, Result.GENERIC_STATUS_TERMINATED)
        for server in self._servers:
            server.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _stop(self, sandbox_id: str, status: int, *, notice: bool = False, grace_seconds: float = 0.0) -> None:
        sandbox = self._find(sandbox_id)
        await self._cloud.stop(sandbox, status, notice=notice, grace_seconds=grace_seconds)
        await sandbox.over.wait()

    def _find(self, sandbox_id: str) -> Sandbox:
        try:
            return self._cloud.sandboxes[sandbox_id]
        except KeyError:
            known = ", ".join(self._cloud.sandboxes) or "none"
            raise ServiceError(f"the Modal stand-in has no sandbox {sandbox_id!r}; it has: {known}") from None

    def _container(self, sandbox_id: str) -> Any:
        container = self._find(sandbox_id).container
        if container is None:
            raise ServiceError(f"sandbox {sandbox_id} of the Modal stand-in has not started")
        return container
