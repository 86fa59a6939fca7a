"""The worker of the pool `docker-gpu`: prefect-docker's own, set up for training.

Prefect-docker's template knows neither GPUs nor shared memory nor users. Besides those, this worker makes sure that the
job's store is mounted, that two attempts at a job never share the machine, that a run waits for an engine that is being
restarted, that a container's log outlives it, and that the log explains why a container failed.
"""

from __future__ import annotations

import functools
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import anyio.abc
import docker
from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container
from prefect.client.schemas.objects import FlowRun
from prefect.events import Event
from prefect.exceptions import ObjectNotFound
from prefect.utilities.asyncutils import run_sync_in_worker_thread
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration, DockerWorkerResult
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError as Urllib3Error

from crucible.contract import Variable
from crucible.errors import ConfigError, ServiceError
from crucible.home import crucible_home
from crucible.pools.common.event_driven import EventDrivenWorker
from crucible.pools.docker.configuration import STATE_FOLDER, DockerGpuJobConfiguration, DockerGpuVariables
from crucible.pools.docker.sharing import require_own, share
from crucible.store import STORE_BLOCK, default_store_uri

TYPE = "docker-gpu"
ENGINE_TIMEOUT_SECONDS = 180.0
"""How long a run waits for the engine: a restart takes seconds, an upgrade of the engine a minute or two."""
JOB_LABEL = "crucible.job"
STORE_LABEL = "crucible.store"
"""Jobs of several stores, of several users perhaps, may have the same name on one machine."""
NODE_LABEL = "crucible.node"
"""On the containers of nodes after an attempt's first."""
FURTHER_NODE = ["python", "-m", "tasks.node"]
LEAVE_SECONDS = 20
"""How long the further nodes have to leave once the attempt is over."""


class DockerGpuWorker(EventDrivenWorker, DockerWorker):  # type: ignore[misc]  # prefect-docker is untyped
    """Runs flow runs in containers on this machine's Docker engine, with its GPUs."""

    type = TYPE
    job_configuration = DockerGpuJobConfiguration
    job_configuration_variables = DockerGpuVariables
    _description = "Run flow runs in containers on this machine, with its NVIDIA GPUs."
    _display_name = "Docker with GPUs"
    _documentation_url = ""

    @classmethod
    def get_default_base_job_template(cls) -> dict[str, Any]:
        """As every worker's, without prefect-docker's settings that this pool replaces by its own."""
        template: dict[str, Any] = super().get_default_base_job_template()
        variables = template["variables"]["properties"]
        template["job_configuration"] = {k: v for k, v in template["job_configuration"].items() if k in variables}
        return template

    async def run(  # type: ignore[override]  # its identifiers are words, as prefect-docker's are
        self,
        flow_run: FlowRun,
        configuration: DockerWorkerJobConfiguration,
        task_status: anyio.abc.TaskStatus[str] | None = None,
    ) -> DockerWorkerResult:
        """Run the flow run's container to its end, keep its log and remove it.

        Raises `ConfigError` or `ServiceError` when it cannot be started, which Prefect shows as the run's end.
        """
        assert isinstance(configuration, DockerGpuJobConfiguration)
        store = await self._store_root(flow_run)
        await run_sync_in_worker_thread(self._make_room, configuration, store)
        result: DockerWorkerResult = await DockerWorker.run(self, flow_run, configuration, task_status)
        container_id = result.identifier.rsplit(":", 1)[-1]
        await run_sync_in_worker_thread(self._tidy_up, container_id, configuration, self.get_flow_run_logger(flow_run))
        return result

    async def _store_root(self, flow_run: FlowRun) -> str:
        """The address of the store that the flow run will use, by its own parameter."""
        reference = str((flow_run.parameters or {}).get("store") or "default")
        if "://" in reference or reference.startswith("/"):
            return reference
        try:
            document = await self.client.read_block_document_by_name(reference, STORE_BLOCK)
        except ObjectNotFound:
            return default_store_uri()  # the flow itself will say that there is no such block
        return str(document.data["root"])

    def _make_room(self, configuration: DockerGpuJobConfiguration, store: str) -> None:
        """Wait for the engine, end what is left of the job's former attempt, prepare the folders."""
        self._wait_for_engine()
        parts = urlsplit(store)
        path = None
        if parts.scheme in ("", "file"):
            path = Path(unquote(parts.path) if parts.scheme else store).expanduser().absolute()
        configuration.labels[STORE_LABEL] = store.rstrip("/") if path is None else str(path)
        self._end_former_attempt(configuration)
        # Which code multiplies matrices fastest is measured once per machine: attempts here and in containers share
        # the answer, because it decides the last bits.
        folders = {configuration.state_folder: STATE_FOLDER, crucible_home() / "gemm": f"{STATE_FOLDER}/gemm"}
        if path is not None:
            if path != crucible_home() / "store":
                require_own(path, f"store = {store!r}")
            folders[path] = str(path)
        uid = int(configuration.container_user.partition(":")[0])
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            if folder.stat().st_uid != uid:
                share(folder, uid)
        configuration.mount(folders)

    def _wait_for_engine(self) -> None:
        deadline = time.monotonic() + ENGINE_TIMEOUT_SECONDS
        while True:
            try:
                client = docker.from_env(timeout=10)
                client.ping()
                client.close()
                return
            except (DockerException, OSError) as error:
                if time.monotonic() > deadline:
                    raise ServiceError(
                        f"the Docker engine has not answered for {ENGINE_TIMEOUT_SECONDS:.0f} s; start it "
                        f"(systemctl start docker). Its message: {error}"
                    ) from error
                time.sleep(1.0)

    def _end_former_attempt(self, configuration: DockerGpuJobConfiguration) -> None:
        """An attempt that was given up may still hold the GPU; it is asked to save first, like any other."""
        if configuration.job is None:
            return
        client = self._get_client()
        try:
            same = [f"{JOB_LABEL}={configuration.job}", f"{STORE_LABEL}={configuration.labels[STORE_LABEL]}"]
            for container in client.containers.list(filters={"label": same}, ignore_removed=True):
                self._logger.warning("Container %s of the same job still runs and is stopped", container.name)
                with suppress(NotFound):
                    container.stop(timeout=configuration.stop_timeout_seconds)
        finally:
            client.close()

    def _build_container_settings(
        self, docker_client: docker.DockerClient, configuration: DockerWorkerJobConfiguration
    ) -> dict[str, Any]:
        assert isinstance(configuration, DockerGpuJobConfiguration)
        settings: dict[str, Any] = super()._build_container_settings(docker_client, configuration)
        return settings | configuration.container_settings() | {"stop_timeout": configuration.stop_timeout_seconds}

    def _create_and_start_container(self, configuration: DockerWorkerJobConfiguration) -> tuple[Container, Event]:
        assert isinstance(configuration, DockerGpuJobConfiguration)
        try:
            started: tuple[Container, Event] = super()._create_and_start_container(configuration)
        except APIError as error:
            self._remove_unstarted(configuration)
            raise _as_own_error(error, configuration) from error
        try:
            self._start_further_nodes(configuration)
        except APIError as error:  # all or none
            started[0].stop(timeout=configuration.stop_timeout_seconds)
            raise _as_own_error(error, configuration) from error
        return started

    def _start_further_nodes(self, configuration: DockerGpuJobConfiguration) -> None:
        """A container for each node after the first one, which has started; none is left if one does not start."""
        client = self._get_client()
        try:
            settings = self._build_container_settings(client, configuration)
            for rank in range(1, configuration.node_count):
                environment = {**settings["environment"], Variable.NODE_RANK: str(rank)}
                labels = {**settings["labels"], NODE_LABEL: str(rank)}
                own = {"command": FURTHER_NODE, "environment": environment, "labels": labels}
                own["name"] = f"{settings['name'] or 'crucible'}-node-{rank}"
                self._create_container(client, **{**settings, **own}).start()
        except APIError:
            for container in self._further_nodes(client, configuration):
                container.remove(force=True)
            raise
        finally:
            client.close()

    def _further_nodes(self, client: docker.DockerClient, configuration: DockerGpuJobConfiguration) -> list[Container]:
        run = configuration.labels.get("io.prefect.flow-run-id")
        labels = [f"io.prefect.flow-run-id={run}", NODE_LABEL]
        found: list[Container] = client.containers.list(all=True, filters={"label": labels}, ignore_removed=True)
        return found

    def _create_container(self, docker_client: docker.DockerClient, **settings: Any) -> Container:
        # docker-py's containers.create does not take a stop timeout, though the call below it does.
        create, stop_timeout = docker_client.api.create_container, settings.pop("stop_timeout")
        docker_client.api.create_container = functools.partial(create, stop_timeout=stop_timeout)
        return super()._create_container(docker_client, **settings)

    def _watch_container_safe(
        self, container: Container, configuration: DockerWorkerJobConfiguration, created_event: Event
    ) -> Container:
        """Until the container has ended, also across a restart of the engine."""
        while True:
            try:
                return super()._watch_container_safe(container, configuration, created_event)
            except (RequestException, Urllib3Error) as error:
                self._logger.warning("The Docker engine went away (%s); waiting for it", type(error).__name__)
                self._wait_for_engine()

    def _remove_unstarted(self, configuration: DockerGpuJobConfiguration) -> None:
        client = self._get_client()
        try:
            run = configuration.labels.get("io.prefect.flow-run-id")
            filters = {"label": f"io.prefect.flow-run-id={run}", "status": "created"}
            for container in client.containers.list(all=True, filters=filters, ignore_removed=True):
                container.remove()
        finally:
            client.close()

    def _tidy_up(self, container_id: str, configuration: DockerGpuJobConfiguration, logger: Any) -> None:
        """Say how it ended, keep the log, remove the container."""
        self._wait_for_engine()
        client = self._get_client()
        try:
            container = client.containers.get(container_id)
            state = container.attrs["State"]
            if state.get("OOMKilled"):
                limit = configuration.memory or "the machine's memory"
                logger.error("The container ran out of memory (limit: %s); raise the job variable memory", limit)
            elif state.get("ExitCode"):
                logger.error("The container ended with exit code %s %s", state["ExitCode"], state.get("Error", ""))
            kept = keep_log(container)
            logger.info("The container's log is kept in %s", kept)
            further = self._further_nodes(client, configuration) if configuration.node_count > 1 else []
            for other in further:  # they leave when they see that the attempt is over
                with suppress(NotFound):
                    with suppress(RequestException):
                        other.wait(timeout=LEAVE_SECONDS)
                    other.stop(timeout=1)
                    keep_log(other)
            if not configuration.keep_container:
                for each in (container, *further):
                    with suppress(NotFound):
                        each.remove(force=True)
        except NotFound:
            logger.warning("The container was removed before its log could be kept")
        finally:
            client.close()

    async def kill_infrastructure(
        self, infrastructure_pid: str, configuration: DockerWorkerJobConfiguration, grace_seconds: int = 30
    ) -> None:
        """Stop the container of a cancelled run, with the time to save that it was promised."""
        assert isinstance(configuration, DockerGpuJobConfiguration)
        grace = max(grace_seconds, configuration.stop_timeout_seconds)
        await super().kill_infrastructure(infrastructure_pid, configuration, grace)


def keep_log(container: Container) -> Path:
    """Write the container's output to `logs/docker/<name>.log` in `CRUCIBLE_HOME`; returns the file."""
    path = crucible_home() / "logs" / "docker" / f"{container.name}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as log:
        for part in container.logs(stream=True, follow=False, timestamps=True):
            log.write(part)
    return path


def _as_own_error(error: APIError, configuration: DockerGpuJobConfiguration) -> ConfigError | ServiceError:
    said = str(error.explanation or error)
    if "could not select device driver" in said or "nvidia-container-cli" in said or "unresolvable CDI" in said:
        return ConfigError(
            f"gpus: {configuration.gpus!r}, but this Docker engine cannot hand out NVIDIA GPUs: install the driver and "
            "the NVIDIA Container Toolkit (nvidia-ctk runtime configure, then restart docker), or train on the CPU "
            f"with gpus: 0. The engine's message: {said}"
        )
    if isinstance(error, docker.errors.ImageNotFound) or "pull access denied" in said:
        return ConfigError(
            f"image: {configuration.image!r} is not on this machine and cannot be pulled; build it with: crucible "
            f"images build. The engine's message: {said}"
        )
    return ServiceError(f"the Docker engine did not start the container: {said}")
