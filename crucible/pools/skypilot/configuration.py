"""The variables of a `skypilot` work pool, and the task that they make for SkyPilot."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import BaseVariables
from pydantic import BaseModel, Field, field_validator, model_validator

from crucible.contract import Variable
from crucible.pools.common.configuration import OfferedJobConfiguration
from crucible.pools.skypilot.offers import OWN_MACHINES
from crucible.resources import NodeRange, Resources

SPOT_CLOUDS = ("aws", "azure", "gcp", "ibm", "mithril", "nebius", "oci", "primeintellect", "runpod", "vast", "verda")
STEADY_CLOUDS = (
    *("cudo", "do", "fluidstack", "hyperbolic", "lambda", "paperspace", "scp", "seeweb", "shadeform"),
    *("vsphere", "yotta"),
)
CLOUDS = (*SPOT_CLOUDS, *STEADY_CLOUDS, *OWN_MACHINES)
"""All of SkyPilot 0.14.1, by whether it has spot machines there."""
STOP_GRACE_SECONDS = 30
"""What SkyPilot and the clouds leave a machine between SIGTERM and its end."""
VENV = "~/crucible-venv"
SETUP = f"""\
uv=$(command -v uv || echo ~/.local/bin/uv)
$uv venv --quiet --allow-existing --python 3.11 {VENV}
$uv pip install --quiet --python {VENV}/bin/python -r images/requirements-gpu.txt -c images/requirements.txt
$uv pip install --quiet --python {VENV}/bin/python -r images/requirements.txt
{VENV}/bin/python images/metadata.py pyproject.toml .
"""
"""Gets a bare machine ready, with the packages of Crucible's images. SkyPilot brings uv along."""
_INFRA = re.compile(r"(?P<cloud>[a-z]+)(/[\w.*-]+){0,2}")
_ACCELERATORS = re.compile(r"[A-Za-z][\w.-]*(:\d{1,2})?")
_AMOUNT = re.compile(r"\d+(\.\d+)?\+?")
_INSTANCE = re.compile(r"[\w.-]+")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")


class _SkyFields(BaseModel):
    """What both the pool's form and a flow run's configuration have; documented here for both."""

    infra: str = Field(
        default="", description="Where: cloud, region and zone, such as gcp/us-central1, azure/eastus or lambda."
    )
    instance_type: str = Field(default="", description="The cloud's own name of the machine, such as g2-standard-4.")
    accelerators: str = Field(default="", title="GPUs", description="Type and number, such as L4:1. Empty: none.")
    nodes: str = Field(
        default="1",
        description="Machines that train together: 2, or a range like 2..4. SkyPilot brings up all or none: of a range "
        "the most, and where there are not so many, the least.",
    )
    use_spot: bool = Field(
        default=False, title="Spot", description="A spot machine: cheaper, and reclaimed at any time."
    )
    cpus: str = Field(default="", title="CPUs", description="Number of CPUs; 4+ means at least four.")
    memory: str = Field(default="", description="GiB of memory; 16+ means at least sixteen.")
    disk_gib: int | None = Field(default=None, gt=0, title="Disk", description="GiB of the machine's disk.")
    image: str = Field(default="", description="Machine image of the cloud, or docker:NAME. Empty: SkyPilot's own.")
    workdir: str = Field(
        default="", description="Folder on the worker's machine with the project; it is copied to every machine."
    )
    setup: str = Field(default=SETUP, description="Shell lines that get a new machine ready.")
    venv: str = Field(
        default=VENV,
        title="Virtual environment",
        description="Folder on the machine that setup makes, or that is there.",
    )
    prologue: str = Field(default="", description="Shell lines that run on the machine before each attempt.")
    autostop_minutes: int = Field(
        default=10,
        ge=1,
        le=1440,
        description="An idle machine takes itself down after so many minutes, with no worker.",
    )
    start_minutes: int = Field(
        default=60, ge=1, description="Time for a machine to come up and be set up. Then it is taken down."
    )
    grace_seconds: int = Field(
        default=120,
        ge=0,
        description="Time for an attempt to save and end once its flow run is cancelled, over, or in a newer attempt. "
        "Then its machine is taken down.",
    )
    poll_seconds: float = Field(
        default=60.0, gt=0, description="How often the worker asks SkyPilot whether the machine is still there."
    )
    max_restarts: int = Field(
        default=0,
        ge=0,
        description="How often a run goes back to AwaitingRetry, for a new machine, when it lost its own. 0 where "
        "something else decides over retries, as Crucible's supervising flow does.",
    )
    api_server: str = Field(
        default="", description="Address of SkyPilot's API server. Empty: the worker's own machine."
    )
    sky_python: str = Field(
        default="", description="Python with SkyPilot. Empty: the environment that `crucible sky setup` makes."
    )

    @field_validator("infra")
    @classmethod
    def _infra(cls, value: str) -> str:
        found = _INFRA.fullmatch(value)
        if value and found is None:
            raise ValueError("write a cloud, and perhaps its region and zone: gcp/us-central1")
        if found is not None and found["cloud"] not in CLOUDS:
            raise ValueError(f"SkyPilot knows no cloud {found['cloud']!r}; it knows {', '.join(sorted(CLOUDS))}")
        return value

    @field_validator("nodes", mode="before")
    @classmethod
    def _nodes(cls, value: Any) -> str:
        return Resources(nodes=value).nodes

    @field_validator("accelerators", mode="before")
    @classmethod
    def _accelerators(cls, value: Any) -> Any:
        text = "" if value is None else str(value)
        if text and not _ACCELERATORS.fullmatch(text):
            raise ValueError("write a type and a number: L4:1, A100-80GB:8")
        return text

    @field_validator("cpus", "memory", mode="before")
    @classmethod
    def _amount(cls, value: Any) -> Any:
        text = "" if value is None else str(value)
        if text and not _AMOUNT.fullmatch(text):
            raise ValueError("write a number, or a number and +: 4, 16+")
        return text

    @field_validator("instance_type")
    @classmethod
    def _instance(cls, value: str) -> str:
        if value and not _INSTANCE.fullmatch(value):
            raise ValueError("write one name of letters, digits and . _ -")
        return value

    @field_validator("api_server")
    @classmethod
    def _server(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^\s/]+\S*", value):
            raise ValueError("write an address: https://sky.example.org")
        return value

    @model_validator(mode="after")
    def _spot(self) -> Any:
        if self.use_spot and self.cloud and self.cloud not in SPOT_CLOUDS:
            raise ValueError(f"use_spot: {self.cloud} has no spot machines; leave use_spot out")
        return self

    @property
    def cloud(self) -> str:
        return self.infra.partition("/")[0]


class SkyVariables(_SkyFields, BaseVariables):
    """The form of a `skypilot` work pool."""


class SkyJobConfiguration(_SkyFields, OfferedJobConfiguration):
    """How one flow run is to be run on a machine of SkyPilot's."""

    @staticmethod
    def _base_flow_run_command() -> str:
        return "python -m prefect.engine"

    def prepare_for_flow_run(self, flow_run: FlowRun, *args: Any, **kwargs: Any) -> None:
        """As every pool does it; the entrypoint learns how long a machine has after SIGTERM."""
        super().prepare_for_flow_run(flow_run, *args, **kwargs)
        self.env.setdefault(Variable.STOP_GRACE_SECONDS.value, str(STOP_GRACE_SECONDS))

    def problem(self) -> str | None:
        """What is wrong before anything is asked of SkyPilot; None: nothing."""
        if not self.infra:
            return "infra is not set: name a cloud, such as gcp/us-central1, with `crucible sky pool --infra`"
        if self.workdir and not Path(self.workdir).expanduser().is_dir():
            return f"workdir: there is no folder {self.workdir!r} on the worker's machine"
        if bad := [name for name in self.env if not _VARIABLE.fullmatch(name)]:
            return f"job variable env: {bad[0]!r} is not the name of an environment variable"
        return None

    @property
    def node_range(self) -> NodeRange:
        """How many machines train together, at least and at most."""
        return Resources(nodes=self.nodes).node_range

    def task(self, workdir: str, nodes: int = 1) -> dict[str, Any]:
        """SkyPilot's task on so many machines. Its optimizer has nothing to choose that is named here; what may be
        secret is in `secrets`, which it does not show."""
        wanted = {
            "infra": self.infra,
            "instance_type": self.instance_type,
            "accelerators": self.accelerators,
            "use_spot": self.use_spot or None,
            "cpus": self.cpus,
            "memory": self.memory,
            "disk_size": self.disk_gib,
            "image_id": self.image,
        }
        made = {
            "num_nodes": nodes,
            "resources": {name: value for name, value in wanted.items() if value not in ("", None)},
            "workdir": workdir,
            "setup": self.setup.strip(),
            "run": self.script(),
            "secrets": {name: str(value) for name, value in self.env.items() if value is not None},
        }
        return {name: value for name, value in made.items() if value not in ("", {})}

    def script(self) -> str:
        """What runs on the machine. The entrypoint in front turns a SIGTERM into a request to save."""
        path = f"export PATH={_in_shell(self.venv)}/bin:$PATH" if self.venv else ""
        lines = [
            self.prologue.strip(),
            path,
            'export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"',
            _SEVERAL_NODES if self.node_range.most > 1 else "",
            f"exec python -m crucible.agent.entrypoint -- {self.command or self._base_flow_run_command()}",
        ]
        return "\n".join(line for line in lines if line)


_SEVERAL_NODES = f"""\
rank=${{SKYPILOT_NODE_RANK:-0}}
export {Variable.NODES}=${{SKYPILOT_NUM_NODES:-1}}
export {Variable.NODE_ADDRESS}=$(echo "$SKYPILOT_NODE_IPS" | sed -n "$((rank + 1))p")
if [ "$rank" -gt 0 ]; then export {Variable.NODE_RANK}=$rank; exec python -m tasks.node; fi"""
"""The first machine runs the flow run, and with it the attempt; each other one is a further node of it.
https://docs.skypilot.co/en/latest/running-jobs/environment-variables.html"""


def _in_shell(path: str) -> str:
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def cluster_name(pool: str, flow_run: FlowRun) -> str:
    """The name of an attempt's cluster, by which it is found again."""
    return f"{prefix_of(pool)}{flow_run.id.hex}-{flow_run.run_count}"


def prefix_of(pool: str) -> str:
    """How the names of a pool's clusters begin; the pool's id keeps those of several Prefect servers apart."""
    return f"crucible-{pool.replace('-', '')[:8]}-"
