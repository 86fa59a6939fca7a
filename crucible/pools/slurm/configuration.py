"""The variables of a `slurm` work pool, and how they configure one flow run."""

from __future__ import annotations

import re
from typing import Any, Literal

from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import BaseVariables
from pydantic import BaseModel, Field, field_validator

from crucible.pools.common.configuration import Names, OfferedJobConfiguration
from crucible.pools.common.unconnected import COMMAND, attempt_variable
from crucible.pools.slurm.script import BatchScript, container_command
from crucible.resources import Resources

_NAME = re.compile(r"[\w.,:@+-]+")
_GPUS = re.compile(r"(\w[\w.-]*:)?\d{1,3}")
_LOGIN = re.compile(r"[A-Za-z0-9_][\w.@-]*")
_FLAG = re.compile(r"--([a-z-]+)(=[\w.,:;/+@=\[\]*%&|!~ -]*)?")
EXTRA_FLAGS = frozenset(
    (
        *("begin", "deadline", "nice", "priority", "licenses", "mail-type", "mail-user", "wckey", "prefer", "switches"),
        *("exclude", "nodelist", "exclusive", "oversubscribe", "tmp", "hint", "threads-per-core", "cores-per-socket"),
        *("sockets-per-node", "distribution", "cpus-per-gpu", "mem-per-gpu", "mem-per-cpu", "gpus", "gpus-per-node"),
        *("gpu-bind", "gpu-freq", "cpu-freq", "time-min", "network"),
        *("container-image", "container-mounts", "container-workdir", "container-name", "container-writable"),
    )
)
"""Options of sbatch that the pool passes on as they are; the `container-…` ones are Pyxis's. Options that would change
what runs, where its output goes or which environment it gets are not among them."""


class _SlurmFields(BaseModel):
    """What both the pool's form and a flow run's configuration have; documented here for both."""

    login_node: str | None = Field(
        default=None,
        description="user@host, or a name of ~/.ssh/config, where sbatch works. Empty: the worker's own machine.",
    )
    partition: str | None = Field(default=None, description="Partition. Empty: the cluster's default.")
    account: str | None = Field(default=None, description="Account whose hours are used. Empty: your default.")
    qos: str | None = Field(default=None, title="QOS", description="Quality of service. Empty: your default.")
    nodes: str = Field(
        default="",
        description="Nodes that train together, such as 2, or 2..4 for as many of them as there are. Empty: 1.",
    )
    gpus: str = Field(default="", title="GPUs", description="GPUs of one node, like 2 or a100:1. Empty or 0: none.")
    cpus: int | None = Field(default=None, gt=0, title="CPUs", description="CPUs of the job's task.")
    memory_mib: int | None = Field(default=None, gt=0, title="Memory", description="MiB of the node's memory.")
    time_limit_minutes: int | None = Field(
        default=None,
        gt=0,
        description="Time limit. Longer work goes on in a new job. Empty: the partition's default.",
    )
    constraint: str | None = Field(default=None, description="Features of the node, such as a100|h100.")
    reservation: str | None = Field(default=None, description="Reservation to run in.")
    extra_flags: Names = Field(
        default_factory=list, description="Further options of sbatch, such as --exclude=node7 or --nice=100."
    )
    venv: str = Field(
        default="",
        title="Virtual environment",
        description="Folder of a virtual environment with Crucible that the nodes share, such as ~/crucible/.venv.",
    )
    workdir: str = Field(default="~/crucible", description="Folder with the project's code that the nodes share.")
    log_folder: str = Field(
        default="~/.crucible/logs/slurm", description="Folder for what jobs print, on the shared file system."
    )
    prologue: str = Field(default="", description="Shell lines that run first on the node, such as: module load cuda.")
    container_image: str = Field(
        default="", description="Image that Apptainer runs the attempt in, such as ~/crucible.sif. Empty: none."
    )
    container_runtime: Literal["apptainer", "singularity"] = Field(
        default="apptainer", description="The program that runs the image."
    )
    container_options: Names = Field(
        default_factory=lambda: ["--nv"], description="Options of its exec command, such as --nv,--bind=/data."
    )
    grace_seconds: int = Field(
        default=120,
        ge=0,
        description="Time for a job to save and end by itself once its flow run is cancelled, over, or in a newer job. "
        "Then it is cancelled.",
    )
    preemption_seconds: int = Field(
        default=30,
        ge=1,
        description="From the beginning of a preemption to SIGKILL: the partition's GraceTime and KillWait.",
    )
    kill_seconds: int = Field(
        default=30, ge=1, description="From SIGTERM to SIGKILL when a job is ended otherwise: the cluster's KillWait."
    )
    poll_seconds: float = Field(
        default=10.0, gt=0, description="How often the worker asks Slurm for the state of a job."
    )
    max_restarts: int = Field(
        default=0,
        ge=0,
        description="How often a run goes back to AwaitingRetry, for a new job, when Slurm ended its job. 0 where "
        "something else decides over retries, as Crucible's supervising flow does.",
    )

    @field_validator("partition", "account", "qos", "reservation")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and not _NAME.fullmatch(value):
            raise ValueError("write a name of letters, digits and . , : @ + - _")
        return value or None

    @field_validator("login_node")
    @classmethod
    def _host(cls, value: str | None) -> str | None:
        if value and not _LOGIN.fullmatch(value):
            raise ValueError("write user@host or a name of ~/.ssh/config; ports and keys belong there, too")
        return value or None

    @field_validator("gpus", mode="before")
    @classmethod
    def _gpus(cls, value: Any) -> Any:
        text = "" if value is None else str(value)
        if text and not _GPUS.fullmatch(text):
            raise ValueError("write a number, or a type and a number: 2, a100:1")
        return text

    @field_validator("nodes", mode="before")
    @classmethod
    def _nodes(cls, value: Any) -> str:
        return Resources(nodes=value).nodes

    @field_validator("extra_flags")
    @classmethod
    def _allowed(cls, value: list[str]) -> list[str]:
        for flag in value:
            match = _FLAG.fullmatch(flag)
            if match is None:
                raise ValueError(f"{flag!r}: write an option as --name=value")
            if match[1] not in EXTRA_FLAGS:
                raise ValueError(
                    f"{flag!r} is not among the options that are passed on: {', '.join(sorted(EXTRA_FLAGS))}"
                )
        return value

    @field_validator("constraint", "venv", "workdir", "log_folder", "container_image")
    @classmethod
    def _one_line(cls, value: str | None) -> str | None:
        if value and not value.isprintable():
            raise ValueError("write one line")
        return value


class SlurmVariables(_SlurmFields, BaseVariables):
    """The form of a `slurm` work pool."""


class SlurmJobConfiguration(_SlurmFields, OfferedJobConfiguration):
    """How one flow run is to be run on a Slurm cluster."""

    @staticmethod
    def _base_flow_run_command() -> str:
        # Without Prefect's runner in front: Slurm signals every process of a job, and the runner would end at once.
        return COMMAND

    def prepare_for_flow_run(self, flow_run: FlowRun, *args: Any, **kwargs: Any) -> None:
        """As every pool does it; the node also learns which attempt it is for, should it reach no server."""
        super().prepare_for_flow_run(flow_run, *args, **kwargs)
        self.env |= attempt_variable(flow_run)

    def job_name(self, flow_run: FlowRun) -> str:
        """Jobs of one name never run side by side: those of one job of Crucible's, else those of one flow run."""
        return (
            "crucible-" + re.sub(r"[^\w.-]", "-", self._run_tags.get("job") or str(flow_run.id), flags=re.ASCII)[:200]
        )

    def options(self) -> list[str]:
        """The options of sbatch that say what the job gets."""
        gpus = self.gpus if self.gpus not in ("", "0") else None
        named = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "gres": gpus and f"gpu:{gpus}",
            "cpus-per-task": self.cpus,
            "mem": self.memory_mib and f"{self.memory_mib}M",
            "time": self.time_limit_minutes,
            "constraint": self.constraint,
            "reservation": self.reservation,
        }
        own = [f"--{name}={value}" for name, value in named.items() if value]
        nodes = Resources(nodes=self.nodes).node_range
        if nodes.most == 1:
            return ["--nodes=1", "--ntasks=1", *own, *self.extra_flags]
        return [f"--nodes={nodes.least}-{nodes.most}", "--ntasks-per-node=1", *own, *self.extra_flags]

    def script(self) -> str:
        """The batch script."""
        container = ""
        if self.container_image:
            container = container_command(self.container_runtime, self.container_image, self.container_options)
        return BatchScript(
            command=self.command or self._base_flow_run_command(),
            venv=self.venv,
            prologue=self.prologue,
            container=container,
            preemption_seconds=self.preemption_seconds,
            kill_seconds=self.kill_seconds,
            grace_seconds=self.grace_seconds,
        ).text()
