"""Modal's API as the worker uses it: find, create, follow and end sandboxes, and read what they have cost."""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import modal
from grpclib import GRPCError, Status
from modal import exception as errors
from modal.config import config as modal_settings

import crucible
from crucible.contract import Variable
from crucible.errors import ConfigError
from crucible.home import crucible_home
from crucible.pools.common.build_context import staged_context
from crucible.pools.common.reach import obstacle
from crucible.pools.common.registry_faults import PASSING
from crucible.pools.modal import failures as failures
from crucible.pools.modal.configuration import ModalJobConfiguration
from crucible.pools.modal.failures import End

LONGEST_BILL = timedelta(days=7)
"""Modal sums up costs over seven days at most, in whole hours of UTC."""
_CHECKOUT = Path(crucible.__file__).resolve().parents[1]
_TRANSIENT = (
    *(errors.ConnectionError, errors.ServiceError, errors.InternalError, errors.TimeoutError),
    *(errors.InternalFailure, errors.ClientClosed),
)
_TRANSIENT_STATUS = {Status.UNAVAILABLE, Status.INTERNAL, Status.UNKNOWN, Status.DEADLINE_EXCEEDED, Status.ABORTED}
_SPENT = re.compile(
    r"\bspend(ing)? limit (was |has been )?(reached|exceeded)|insufficient credits|out of credits", re.I
)
_BUILD_PASSES = re.compile(
    r"terminated due to external shut-down|temporary failure in name resolution|read timed out|" + PASSING, re.I | re.S
)
_LONGEST_PAUSE_SECONDS = 30.0
Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


class Sandboxes:
    """The sandboxes of one Modal account, for flow runs with one job configuration."""

    def __init__(self, client: modal.Client, configuration: ModalJobConfiguration, logger: Logger) -> None:
        self._client, self._configuration, self._logger = client, configuration, logger

    @classmethod
    async def connect(cls, configuration: ModalJobConfiguration, logger: Logger) -> Sandboxes:
        """Open the account of the configured token.

        Raises:
            TokenRefused: there is no token, or Modal does not accept it.
            ModalUnreachable: Modal does not answer.
        """
        with explained():
            if configuration.credentials is None:
                client = await modal.Client.from_env.aio()
            else:
                token = configuration.credentials
                client = await _client(token.token_id.get_secret_value(), token.token_secret.get_secret_value())
        return cls(client, configuration, logger)

    async def create(self, name: str, attempt: int) -> modal.Sandbox:
        """Build the image if need be and create the attempt's sandbox, on the first GPU type that is to be had.

        A sandbox of that name which runs already is the attempt's own, made by a worker that died before it could say
        so, and is returned. When this call is cancelled, nothing is left behind on Modal.

        Raises:
            ModalFailure: there is no sandbox; the kind of failure says why.
            ConfigError: the image is not defined.
        """
        wanted = self._configuration
        with explained():
            app = await self._app()
            # Built first, so that a broken image is not mistaken for a wait for machines.
            image = await self._built_image(app)
        for gpu in wanted.gpu or [""]:
            try:
                async with asyncio.timeout(wanted.capacity_timeout_seconds):
                    with explained():
                        sandbox = await self._create(app, image, name, attempt, gpu or None)
                self._logger.info("Sandbox %s has started on %s", sandbox.object_id, gpu or "CPUs")
                return sandbox
            except TimeoutError:
                self._logger.warning("No %s was to be had within %d s", gpu or "CPU", wanted.capacity_timeout_seconds)
            except failures.NoCapacity as failure:
                self._logger.warning("%s", failure)
        raise failures.NoCapacity(
            f"gpu: Modal had none of {', '.join(wanted.gpu) or 'its CPUs'} free within "
            f"{wanted.capacity_timeout_seconds} s each; name other types, or wait longer with capacity_timeout_seconds"
        )

    async def _create(
        self, app: modal.App, image: modal.Image, name: str, attempt: int, gpu: str | None
    ) -> modal.Sandbox:
        wanted = self._configuration
        here: dict[str, Any] = {"environment_name": wanted.environment_name, "client": self._client}
        lifetime: dict[str, str] = {Variable.MACHINE_ENDS_AT: str(int(time.time()) + wanted.timeout_seconds)}
        try:
            return await modal.Sandbox.create.aio(
                *shlex.split(wanted.command or ""),
                app=app,
                client=self._client,
                image=image,
                name=name,
                tags=wanted.sandbox_tags(attempt),
                env={**wanted.env, **lifetime},
                secrets=[modal.Secret.from_name(secret, **here) for secret in wanted.secrets],
                volumes={
                    path: modal.Volume.from_name(volume, create_if_missing=True, **here)
                    for path, volume in wanted.volumes.items()
                },
                gpu=gpu,
                cpu=wanted.cpu,
                memory=wanted.memory_mib,
                timeout=wanted.timeout_seconds,
                region=wanted.region or None,
                cloud=wanted.cloud,
                workdir=wanted.workdir,
            )
        except errors.AlreadyExistsError:
            return await modal.Sandbox.from_name.aio(wanted.app_name, name, **here)

    async def find(self, sandbox_id: str) -> modal.Sandbox:
        """The sandbox of that id, running or ended.

        Raises:
            SandboxGone: Modal does not know it.
        """
        with explained():
            try:
                return await modal.Sandbox.from_id.aio(sandbox_id, client=self._client)
            except errors.NotFoundError:
                raise failures.SandboxGone(f"Modal knows no sandbox {sandbox_id} any more") from None

    async def running(self, tags: dict[str, str]) -> list[tuple[modal.Sandbox, dict[str, str]]]:
        """All running sandboxes of the App that have these tags, each with all its tags."""
        with explained():
            app = await self._app()
            found = [s async for s in modal.Sandbox.list.aio(app_id=app.app_id, tags=tags, client=self._client)]
            return [(sandbox, await sandbox.get_tags.aio()) for sandbox in found]

    async def tags(self, sandbox: modal.Sandbox) -> dict[str, str]:
        """The tags of a sandbox, running or ended."""
        with explained():
            return await sandbox.get_tags.aio()

    async def terminate(self, sandbox: modal.Sandbox) -> None:
        """End a sandbox and wait until it is gone."""
        with explained():
            await sandbox.terminate.aio(wait=True)

    async def end_of(self, sandbox: modal.Sandbox) -> End:
        """Wait for the end of a sandbox, through any time in which Modal does not answer or refuses the token.

        Raises:
            SandboxGone: Modal does not know the sandbox.
        """
        pause = 1.0
        while True:
            try:
                await sandbox.wait.aio()
                return End("exited", sandbox.returncode or 0)
            except errors.SandboxTimeoutError:
                return End("lifetime", 124)
            except errors.SandboxTerminatedError:
                return End("terminated", 137)
            except errors.NotFoundError:
                raise failures.SandboxGone(f"Modal knows no sandbox {sandbox.object_id} any more") from None
            except (*_TRANSIENT, errors.AuthError) as error:
                if pause == 1.0:
                    self._logger.warning("Modal does not answer (%s); the sandbox goes on, and this wait too", error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def billed_usd(self, sandbox: modal.Sandbox) -> float | None:
        """What Modal says the sandbox has cost; None as long as it has no figure, which may take minutes."""
        with explained():
            cost = (await sandbox._experimental_stats.aio()).cost
        return None if cost is None else float(cost)

    async def _app(self) -> modal.App:
        wanted = self._configuration
        return await modal.App.lookup.aio(
            wanted.app_name, client=self._client, environment_name=wanted.environment_name, create_if_missing=True
        )

    async def _built_image(self, app: modal.App) -> modal.Image:
        """The image, built. Crucible's own is known by its id from then on: for what is in it, the SDK would read every
        file of it again and ask Modal for each."""
        wanted = self._configuration
        own = not wanted.image and wanted.dockerfile is None
        made_of = None
        if own:
            recipe = self._dockerfile().read_bytes(), self._own_context()
            made_of = self._client, wanted.environment_name, self._variant, *recipe
        if made_of in _own_images:
            image = modal.Image.from_id(_own_images[made_of], client=self._client)
            try:
                await image.build.aio(app)
                return image
            except errors.NotFoundError:  # somebody has deleted it on Modal
                del _own_images[made_of]
        image = self._image()
        await image.build.aio(app)
        if made_of is not None:
            _own_images[made_of] = image.object_id
        return image

    @property
    def _variant(self) -> str:
        return "gpu" if self._configuration.gpu else "cpu"

    def _image(self) -> modal.Image:
        wanted = self._configuration
        if wanted.image and wanted.dockerfile:
            raise ConfigError("job variables image and dockerfile: both are set; leave one out")
        if wanted.image and wanted.image.startswith("im-"):
            return modal.Image.from_id(wanted.image, client=self._client)
        secret = None
        if wanted.registry_secret:
            secret = modal.Secret.from_name(
                wanted.registry_secret, environment_name=wanted.environment_name, client=self._client
            )
        if wanted.image:
            return modal.Image.from_registry(wanted.image, secret=secret)
        if wanted.dockerfile is None:
            return self._own_image(secret)
        dockerfile = Path(wanted.dockerfile)
        if not dockerfile.is_file():
            raise ConfigError(f"job variable dockerfile: there is no file {dockerfile} on the worker's machine")
        return modal.Image.from_dockerfile(
            dockerfile, context_dir=wanted.context_dir or dockerfile.parent, registry_secret=secret
        )

    def _own_image(self, secret: modal.Secret | None) -> modal.Image:
        return modal.Image.from_dockerfile(
            self._dockerfile(),
            context_dir=self._own_context(),
            build_args={"VARIANT": self._variant},
            registry_secret=secret,
        )

    def _own_context(self) -> Path:
        """The files that Crucible's own image is made of, in a folder named after their content."""
        return staged_context(_CHECKOUT, crucible_home() / "cache" / "modal-context")

    def _dockerfile(self) -> Path:
        dockerfile = _CHECKOUT / "images" / "Dockerfile"
        if not dockerfile.is_file():
            raise ConfigError(
                "job variable image: not set, and the worker runs in no checkout of Crucible to build one from; "
                "set image to a registry reference, or dockerfile to a path"
            )
        return dockerfile


async def billed_by_tag(tag: str, app_name: str = "crucible", since: datetime | None = None) -> dict[str, float]:
    """Dollars by value of a tag, for all sandboxes of an App since an hour; "" stands for sandboxes without the tag.

    Modal's figures are late by minutes. A naive `since` is taken for UTC.

    Raises:
        ConfigError: `since` is more than seven days ago.
        ModalFailure: Modal does not answer, or refuses.
    """
    now = datetime.now(UTC)
    start = (now - LONGEST_BILL + timedelta(hours=1)) if since is None else since.replace(tzinfo=since.tzinfo or UTC)
    if now - start > LONGEST_BILL:
        raise ConfigError(f"since: {since} is too long ago; Modal sums up the last seven days")
    start = start.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    with explained():
        app = await modal.App.lookup.aio(app_name)
        groups = app.sandboxes.stats.aio(since=start, group_by_tags=[tag])
        return {group.tags.get(tag) or "": float(group.cost or 0) async for group in groups}


_own_images: dict[tuple[modal.Client, str | None, str, bytes, Path] | None, str] = {}
"""Ids of Crucible's own images, by account, environment, variant, Dockerfile and the files that it copies."""
_clients: dict[tuple[str, str], modal.Client] = {}


async def _client(token_id: str, token_secret: str) -> modal.Client:
    token = (token_id, token_secret)
    if token not in _clients:
        _clients[token] = await modal.Client.from_credentials.aio(*token)
    return _clients[token]


def check_api_url(url: str) -> None:
    """Refuse an address of the Prefect API that a sandbox cannot reach, before a sandbox is paid for.

    Raises:
        ApiOutOfReach: the address means the worker's own machine or network.
    """
    if problem := obstacle(url, str(modal_settings["server_url"])):
        raise failures.ApiOutOfReach(problem)


@contextmanager
def explained() -> Iterator[None]:
    """Turn what the SDK raises into the project's own failures, with what to do about it."""
    try:
        yield
    except (errors.Error, GRPCError) as error:
        raise failure_behind(error) from error


def failure_behind(error: errors.Error | GRPCError) -> failures.ModalFailure:
    """What an error of the SDK is for a flow run. Its kind decides whether another attempt may help.

    `tests/pools/modal/test_modal_failures.py` has the messages.
    """
    text = str(error) or type(error).__name__
    status = None if isinstance(error, errors.Error) else error.status  # some calls leak gRPC's own error
    if isinstance(error, errors.AuthError) or status is Status.UNAUTHENTICATED:
        return failures.TokenRefused(
            f"Modal does not accept the token ({text}); make one with `modal token new` and give it to the worker as "
            "MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, or to the pool as a credentials block"
        )
    if _SPENT.search(text):
        return failures.RequestRefused(
            f"Modal: {text}; raise the workspace's budget (modal.com/settings, Usage and billing), then start again"
        )
    if isinstance(error, errors.ImageBuildError):
        if _BUILD_PASSES.search(text):
            return failures.ImageBuildInterrupted(f"image: Modal could not build it now ({text}); it is tried again")
        return failures.ImageBuildFailed(
            f"image: Modal could not build it ({text}); `modal app logs` and the build log on modal.com show the step"
        )
    if isinstance(error, errors.ResourceExhaustedError) or status is Status.RESOURCE_EXHAUSTED:
        return failures.NoCapacity(f"Modal: {text}")
    if isinstance(error, _TRANSIENT) or status in _TRANSIENT_STATUS:
        return failures.ModalUnreachable(f"Modal's API at {modal_settings['server_url']} does not answer: {text}")
    return failures.RequestRefused(f"Modal refused the request: {text}")
