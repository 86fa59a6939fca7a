"""What a training wants of its machine: GPUs, memory, an image. Each pool turns it into its own job variables."""

from __future__ import annotations

import re
from typing import Annotated, Any, NamedTuple

from pydantic import ConfigDict, Field, WithJsonSchema, field_validator

from crucible.errors import ConfigError
from crucible.script_config import variable_name
from crucible.settings import Settings, invalid

__all__ = ["MOST_NODES", "NodeRange", "Resources"]

MOST_NODES = 64


class NodeRange(NamedTuple):
    """How many machines train together: as many as there are, between these two."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.most) if self.least == self.most else f"{self.least}..{self.most}"


class Resources(Settings):
    """What one attempt gets; what is left empty is the pool's own default."""

    model_config = ConfigDict(title="Resources")

    gpus: int | None = Field(
        None, ge=0, le=64, description="How many GPUs, of each node. 0: none. Empty: as the pool gives them."
    )
    nodes: Annotated[
        str, WithJsonSchema({"anyOf": [{"type": "string", "maxLength": 10}, {"type": "integer", "minimum": 1}]})
    ] = Field(
        "",
        max_length=10,
        description="How many machines train together, such as 2, or 2..4 for as many of them as there are. Empty: 1.",
    )
    instance: str = Field(
        "",
        max_length=128,
        description="Machine or GPU type, by its name in `crucible prices ls`, such as g5.xlarge, H100 or "
        "gcp/us-central1/g2-standard-4+L4:1/spot.",
    )
    memory_gib: float | None = Field(None, gt=0, le=100_000, description="Memory of the container, in GiB.")
    image: str = Field("", max_length=512, description="Container image instead of the pool's; it must hold Crucible.")
    timeout_hours: float | None = Field(
        None,
        gt=0,
        le=24,
        description="Modal, Slurm: lifetime of one sandbox or batch job. The job goes on in the next one.",
    )

    environment: dict[str, str] = Field(
        default_factory=dict, description="Environment variables of each attempt; kept in the job's record."
    )

    @field_validator("nodes", mode="before")
    @classmethod
    def _range(cls, value: Any) -> Any:
        text = "" if value is None else str(value).strip()
        match = re.fullmatch(r"([0-9]{1,3})(?:\.\.([0-9]{1,3}))?", text)
        if text and (match is None or not 1 <= int(match[1]) <= int(match[2] or match[1]) <= MOST_NODES):
            raise invalid(
                f"nodes = {value!r} must be how many machines train together, 1 to {MOST_NODES}, or a range: 2, 2..4"
            )
        return text

    @field_validator("environment")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            variable_name("environment", name)
        return value

    @property
    def node_range(self) -> NodeRange:
        """How many machines an attempt gets, at least and at most."""
        least, _, most = (self.nodes or "1").partition("..")
        return NodeRange(int(least), int(most or least))

    def on_one_node(self) -> Resources:
        """The same for work that gains nothing from several machines."""
        return self.model_copy(update={"nodes": ""})

    def job_variables(self, pool: str) -> dict[str, Any]:
        """The pool's job variables. Raises `ConfigError` naming what the pool cannot give."""
        known = _KNOWN.get(pool, frozenset())
        if self.node_range.most > 1 and "nodes" not in known:
            able = ", ".join(name for name, fields in _KNOWN.items() if "nodes" in fields)
            raise ConfigError(
                f"resources: nodes = {self.nodes}: the pool {pool} runs an attempt on one machine; {able} take several"
            )
        asked = self.model_dump(exclude_defaults=True, exclude={"environment", "nodes"})  # environment: by the agent
        if refused := sorted(set(asked) - known):
            raise ConfigError(
                f"resources: {', '.join(refused)}: the pool {pool} cannot choose that; it can choose "
                f"{', '.join(sorted(known)) or 'nothing'}"
            )
        return _VARIABLES[pool](self) if pool in _VARIABLES else {}

    def visible_gpus(self, visible: str | None) -> dict[str, str]:
        """Variables that keep a process to its GPUs; `visible`: CUDA_VISIBLE_DEVICES as it is now."""
        if self.gpus is None:
            return {}
        here = visible.split(",") if visible is not None else [str(number) for number in range(self.gpus)]
        return {"CUDA_VISIBLE_DEVICES": ",".join(here[: self.gpus])}


def _docker(wanted: Resources) -> dict[str, Any]:
    return _given(
        nodes=wanted.nodes or None,
        gpus=None if wanted.gpus is None else str(wanted.gpus),
        memory=None if wanted.memory_gib is None else f"{round(wanted.memory_gib * 1024)}m",
        image=wanted.image or None,
    )


def _ecs(wanted: Resources) -> dict[str, Any]:
    return _given(
        nodes=wanted.nodes or None,
        gpus=None if wanted.gpus is None else str(wanted.gpus),
        memory=None if wanted.memory_gib is None else round(wanted.memory_gib * 1024),
        image=wanted.image or None,
    )


def _modal(wanted: Resources) -> dict[str, Any]:
    """The GPU itself is the launch's instance, which the catalog has by its name and number (`H100:8`)."""
    return _given(
        gpu=[] if wanted.gpus == 0 else None,
        memory_mib=None if wanted.memory_gib is None else round(wanted.memory_gib * 1024),
        image=wanted.image or None,
        timeout_seconds=None if wanted.timeout_hours is None else round(wanted.timeout_hours * 3600),
    )


def _slurm(wanted: Resources) -> dict[str, Any]:
    return _given(
        nodes=wanted.nodes or None,
        gpus=None if wanted.gpus is None else str(wanted.gpus),
        memory_mib=None if wanted.memory_gib is None else round(wanted.memory_gib * 1024),
        time_limit_minutes=None if wanted.timeout_hours is None else max(1, round(wanted.timeout_hours * 60)),
    )


def _skypilot(wanted: Resources) -> dict[str, Any]:
    """The machine itself is the launch's instance, whose name says all of it."""
    return _given(nodes=wanted.nodes or None, memory=None if wanted.memory_gib is None else f"{wanted.memory_gib:g}+")


def _kubernetes(wanted: Resources) -> dict[str, Any]:
    memory = None if wanted.memory_gib is None else f"{round(wanted.memory_gib * 1024)}Mi"
    return _given(gpus=wanted.gpus, memory_request=memory, memory_limit=memory)


def _given(**variables: Any) -> dict[str, Any]:
    return {name: value for name, value in variables.items() if value is not None}


_KNOWN = {
    "local": frozenset({"gpus", "nodes"}),
    "docker-gpu": frozenset({"nodes", "gpus", "memory_gib", "image"}),
    "ec2-spot": frozenset({"nodes", "gpus", "instance", "memory_gib", "image"}),
    "ec2-on-demand": frozenset({"nodes", "gpus", "instance", "memory_gib", "image"}),
    "modal": frozenset({"gpus", "instance", "memory_gib", "image", "timeout_hours"}),
    "slurm": frozenset({"nodes", "gpus", "memory_gib", "timeout_hours"}),
    "skypilot": frozenset({"nodes", "gpus", "instance", "memory_gib"}),
    "kubernetes": frozenset({"gpus", "memory_gib"}),
}
_VARIABLES = {
    "docker-gpu": _docker,
    "ec2-spot": _ecs,
    "ec2-on-demand": _ecs,
    "modal": _modal,
    "slurm": _slurm,
    "skypilot": _skypilot,
    "kubernetes": _kubernetes,
}
