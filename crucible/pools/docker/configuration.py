"""The variables of a `docker-gpu` work pool, and what becomes of them for one container."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from docker.types import DeviceRequest, Mount
from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import BaseVariables
from prefect_docker.worker import DockerWorkerJobConfiguration
from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator

from crucible.contract import Variable
from crucible.errors import ConfigError
from crucible.home import crucible_home
from crucible.pools.common.environment import passing
from crucible.pools.common.offered import require_offered
from crucible.resources import Resources

INIT = ["python", "-m", "crucible.agent.entrypoint", "--"]
STATE_FOLDER = "/var/lib/crucible"
"""`CRUCIBLE_HOME` in the container: datasets once fetched, and the running attempt's files."""
CONTAINER_USER = 10001
"""The images' own user, for a worker that runs as root."""
GRACE_MARGIN_SECONDS = 5
HOME_LABEL = "crucible.home"
HOST_NAME = "host.docker.internal"

_FROM_THE_WORKER = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "CRUCIBLE_STORE",
    "HF_TOKEN",
    "OMP_NUM_THREADS",
]
_GPUS = re.compile(r"all|\d+|device=[\w/.:-]+(,[\w/.:-]+)*")


class _Fields(BaseModel):
    """What both the pool's form and a container's configuration have; documented here for both."""

    gpus: str = Field(
        default="all",
        title="GPUs",
        description="As for `docker run --gpus`: all, how many, or device=0,2. 0: none, the run goes to the CPU.",
    )
    nodes: str = Field(
        default="",
        description="Containers that train together as if each were a machine, to try that out. Empty: 1.",
    )
    memory: str | None = Field(
        default=None,
        description="Memory limit such as 24g, without swap; the container is killed when it needs more. Empty: none.",
        pattern=r"^\d+[bkmgBKMG]?$",
    )
    shm_size: str = Field(
        default="2g", description="Size of /dev/shm, which data loader processes share. Docker's default is 64 MB."
    )
    tmp_size: str = Field(default="4g", description="Size of /tmp, which is held in memory.")
    stop_timeout_seconds: int = Field(
        default=60, ge=10, description="Time to save between the request to stop (`docker stop`, Cancel) and SIGKILL."
    )
    user: str | None = Field(
        default=None, description="uid:gid of the container. Empty: the worker's own; the image's when that is root."
    )
    state: str | None = Field(
        default=None,
        description="Folder on this machine that keeps datasets and running attempts' files between containers. "
        "Empty: docker/ in the worker's CRUCIBLE_HOME.",
    )
    pass_on: list[str] = Field(
        default_factory=lambda: list(_FROM_THE_WORKER),
        title="Pass on",
        description="Environment variables that the container gets from the worker, where it has them: credentials "
        "of the store need not be written into the pool.",
    )
    keep_container: bool = Field(
        default=False, description="Leave the container behind when it has ended; its log is kept in any case."
    )

    @field_validator("nodes", mode="before")
    @classmethod
    def _nodes(cls, value: Any) -> str:
        return Resources(nodes=value).nodes

    @field_validator("gpus", mode="before")
    @classmethod
    def _known_form(cls, value: Any) -> str:
        text = str(value).strip()
        if not _GPUS.fullmatch(text):
            raise ValueError("write all, a number, or device=0,2 (0: no GPU, train on the CPU)")
        return text


class DockerGpuVariables(_Fields, BaseVariables):
    """The form of a `docker-gpu` work pool."""

    image: str = Field(description="Image with the project in its working folder: crucible images build")
    image_pull_policy: str = Field(
        default="IfNotPresent", description="IfNotPresent, Always, IfPossible or Never.", title="Image pull policy"
    )
    volumes: list[str] = Field(default_factory=list, description="More to mount: host folder:container folder[:ro].")
    network_mode: str | None = Field(
        default=None,
        description="Empty: the host's own network when the Prefect server is on this machine, else Docker's default.",
    )


class DockerGpuJobConfiguration(_Fields, DockerWorkerJobConfiguration):  # type: ignore[misc]  # untyped
    """How one flow run is to be run in a container here."""

    if TYPE_CHECKING:  # inherited, from a class that mypy does not see
        env: dict[str, str | None]
        labels: dict[str, str]
    _tags: dict[str, str] = PrivateAttr(default_factory=dict)
    _folders: dict[Path, str] = PrivateAttr(default_factory=dict)

    @classmethod
    async def from_template_and_values(
        cls, base_job_template: dict[str, Any], values: dict[str, Any], client: Any = None
    ) -> Self:
        """Fill the pool's template. Raises `ConfigError` naming each job variable that is invalid or not offered."""
        require_offered(base_job_template, values)
        try:
            made: Self = await super().from_template_and_values(base_job_template, values, client=client)
        except ValidationError as error:
            problems = [f"job variable {p['loc'][0]}: {p['msg']} (got {p['input']!r})" for p in error.errors()]
            raise ConfigError("; ".join(problems)) from None
        return made

    def prepare_for_flow_run(self, flow_run: FlowRun, *args: Any, **kwargs: Any) -> None:
        """As prefect-docker does it, with the environment, labels and names that training needs."""
        given = {name: os.environ[name] for name in self.pass_on if name in os.environ}
        asked_for = set(self.env)
        self._tags = dict(tag.split(":", 1) for tag in flow_run.tags if ":" in tag)
        self.labels = (
            self.labels
            | {HOME_LABEL: str(crucible_home())}
            | {f"crucible.{name}": self._tags[name] for name in ("job", "attempt") if name in self._tags}
        )
        super().prepare_for_flow_run(flow_run, *args, **kwargs)
        self.env = {**given, **passing(self.env, asked_for), **self._own_environment()}
        if self.get_network_mode() != "host":
            self.env = {name: _as_seen_inside(value) for name, value in self.env.items()}

    def mount(self, folders: dict[Path, str]) -> None:
        """Mount folders of this machine, read-write: folder here → folder in the container."""
        self._folders = folders

    def _own_environment(self) -> dict[str, str]:
        several = {Variable.NODES.value: str(self.node_count)} if self.node_count > 1 else {}
        return several | {
            "CRUCIBLE_HOME": STATE_FOLDER,
            Variable.STOP_GRACE_SECONDS: str(self.stop_timeout_seconds - GRACE_MARGIN_SECONDS),
            "CRUCIBLE_IMAGE": self.image,
        }

    @property
    def node_count(self) -> int:
        """How many containers train together."""
        return Resources(nodes=self.nodes).node_range.most

    @property
    def job(self) -> str | None:
        """The job whose attempts must not run side by side; None for a run that belongs to none."""
        return self._tags.get("job")

    @property
    def container_user(self) -> str:
        if self.user:
            return self.user
        if sys.platform != "linux" or os.getuid() == 0:  # Docker Desktop maps owners by itself
            return f"{CONTAINER_USER}:{CONTAINER_USER}"
        return f"{os.getuid()}:{os.getgid()}"

    @property
    def state_folder(self) -> Path:
        return Path(self.state) if self.state else crucible_home() / "docker"

    @property
    def device_requests(self) -> list[DeviceRequest]:
        """The same request that `docker run --gpus` makes."""
        capabilities = [["gpu"]]
        if self.gpus == "all":
            return [DeviceRequest(count=-1, capabilities=capabilities)]
        if self.gpus.startswith("device="):
            ids = self.gpus.removeprefix("device=").split(",")
            return [DeviceRequest(device_ids=ids, capabilities=capabilities)]
        count = int(self.gpus)
        return [DeviceRequest(count=count, capabilities=capabilities)] if count else []

    def container_settings(self) -> dict[str, Any]:
        """What the engine is asked for beyond prefect-docker's own settings; docker-py's names."""
        return {
            "entrypoint": INIT,
            "init": True,  # a SIGTERM before ours has its handlers must end the container, not be ignored by process 1
            "user": self.container_user,
            "read_only": True,
            "tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={self.tmp_size}"},
            "shm_size": self.shm_size,
            "mem_limit": self.memory,
            "memswap_limit": self.memory,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "restart_policy": {"Name": "no"},
            "device_requests": self.device_requests,
            "mounts": [Mount(there, str(here), type="bind") for here, there in self._folders.items()],
        }


def _as_seen_inside(value: Any) -> Any:
    """An address of this machine by the name that a container on a network of its own has for it."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(://(?:[^/@\s]*@)?)(?:localhost|127\.0\.0\.1)(?=[:/]|$)", rf"\g<1>{HOST_NAME}", value)
