"""The work pools `ec2-spot` and `ec2-on-demand`: prefect-aws's ECS worker, set up for GPU training.

The worker's own template knows no GPU, no stop timeout and no shared memory, registers Fargate definitions unless set
otherwise, and lets a run's labels replace the pool's. `pool_template` fixes that; `register` puts both pools and their
`train/<pool>` deployments on a Prefect server, from the outputs of the stack.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crucible.contract import Variable
from crucible.errors import ConfigError
from crucible.pools.common import registration
from crucible.pools.common.offered import offer_only, with_environment
from crucible.store import STORE_BLOCK

SPOT, ON_DEMAND = "ec2-spot", "ec2-on-demand"
WORKER_TYPE = "crucible-ecs"
"""Its worker also serves pools of the type `ecs`, which earlier versions made."""
PROVIDER_OUTPUTS = {SPOT: "SpotProvider", ON_DEMAND: "OnDemandProvider"}
SIZE_PARAMETERS = {SPOT: "MaxSpotInstances", ON_DEMAND: "MaxOnDemandInstances"}
CONTAINER = "prefect"  # the name by which the worker's observer finds the container that counts
INIT = ["python", "-m", "crucible.agent.entrypoint", "--"]
STOP_TIMEOUT_SECONDS = 110  # a spot notice is 120 s: ten are left for the host
OFFERED = (
    *("image", "nodes", "gpus", "cpu", "memory", "shared_memory", "stop_timeout"),
    *("project", "owner", "job", "stage", "labels"),
)
"""What a run may choose. Roles, credentials, networks, the command and its environment it may not."""


@dataclass(frozen=True)
class PoolOptions:
    """What a user decides about the pools; a run may override what is in `OFFERED` as a job variable."""

    image: str
    """Image with the project in its working directory."""
    project: str = "crucible"
    owner: str = "unknown"
    gpus: int = 1
    cpu_units: int = 3584  # 4 vCPUs of an xlarge, less what the ECS agent and the host need
    memory_mib: int = 14000  # of 16 GiB, of which ECS offers about 15.5
    shared_memory_mib: int = 4096
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Other variables of the worker, which stay as they are until they are named again: `aws_credentials`."""
    prefix: str = ""
    """Put before the pools' names: a second region or account beside the first."""


def pool_template(pool: str, outputs: Mapping[str, str], options: PoolOptions) -> dict[str, Any]:
    """The base job template of one pool, `ec2-spot` or `ec2-on-demand`.

    Cost tags `crucible:project`, `:owner`, `:job` and `:stage` are variables of their own (`project`, `owner`, `job`,
    `stage`), so that a run that sets one keeps the others. Raises `ConfigError` for an unknown pool, missing
    outputs, or a setting that the worker does not have.
    """
    from prefect_aws.workers import ECSWorker

    if pool not in PROVIDER_OUTPUTS:
        raise ConfigError(f"pool = {pool!r}: this stack has the pools {SPOT} and {ON_DEMAND}")
    cluster = _output(outputs, "ClusterArn").rsplit("/", 1)[-1]
    region = _output(outputs, "ClusterArn").split(":")[3]
    template: dict[str, Any] = ECSWorker.get_default_base_job_template()
    job, variables = template["job_configuration"], template["variables"]["properties"]
    job["task_definition"] = _task_definition(outputs, region, options)
    job["task_run_request"] |= {
        "enableECSManagedTags": True,
        "tags": {f"crucible:{name}": "{{ " + name + " }}" for name in ("project", "owner", "job", "stage")},
    }
    for name in ("command", "environment"):  # the worker fills in the whole of both
        del job["task_run_request"]["overrides"]["containerOverrides"][0][name]
    for name, (default, title, description) in {
        "project": (options.project, "Project", "Cost tag crucible:project."),
        "owner": (options.owner, "Owner", "Cost tag crucible:owner."),
        "job": (None, "Job", "Cost tag crucible:job; set by the supervising flow."),
        "stage": ("train", "Stage", "Cost tag crucible:stage."),
        "gpus": (str(options.gpus), "GPUs", "GPUs of the task, as text: ECS wants it so."),
    }.items():
        variables[name] = {"type": "string", "title": title, "description": description}
        if default is not None:
            variables[name]["default"] = default
    job["nodes"] = "{{ nodes }}"
    variables["nodes"] = {
        "type": "string",
        "title": "Nodes",
        "description": "Tasks that train together, each on a machine: 2. Empty: 1.",
        "default": "",
    }
    variables["stop_timeout"] = {
        "type": "integer",
        "title": "Stop timeout",
        "description": "Seconds between SIGTERM and SIGKILL when the task is stopped.",
        "default": STOP_TIMEOUT_SECONDS,
    }
    variables["shared_memory"] = {
        "type": "integer",
        "title": "Shared memory (MiB)",
        "description": "Size of /dev/shm.",
        "default": options.shared_memory_mib,
    }
    defaults: dict[str, Any] = {
        "launch_type": "EC2",  # even with a capacity provider: left at FARGATE, the definition is a Fargate one
        "cluster": cluster,
        "capacity_provider_strategy": [
            {"capacityProvider": _output(outputs, PROVIDER_OUTPUTS[pool]), "weight": 1, "base": 0}
        ],
        "image": options.image,
        "container_name": CONTAINER,
        "family": f"{cluster}-{pool}",
        "match_latest_revision_in_family": True,
        "cpu": options.cpu_units,
        "memory": options.memory_mib,
        "execution_role_arn": _output(outputs, "ExecutionRoleArn"),
        "task_role_arn": _output(outputs, "TaskRoleArn"),
        "env": {"AWS_DEFAULT_REGION": region, "CRUCIBLE_STORE": _output(outputs, "StoreUri")},
    }
    if secret := outputs.get("PrefectAuthSecretArn"):
        defaults["prefect_api_auth_string_secret_arn"] = secret
    for name, value in defaults.items():
        variables[name]["default"] = value
    return offer_only(template, OFFERED, with_environment(options.settings, options.environment))


def _task_definition(outputs: Mapping[str, str], region: str, options: PoolOptions) -> dict[str, Any]:
    return {
        "family": "{{ family }}",
        "requiresCompatibilities": ["EC2"],
        "networkMode": "host",  # the metadata service at hop limit 1, and no port to map
        "executionRoleArn": "{{ execution_role_arn }}",
        "cpu": "{{ cpu }}",
        "memory": "{{ memory }}",
        "containerDefinitions": [
            {
                "name": "{{ container_name }}",
                "image": "{{ image }}",
                "essential": True,
                "entryPoint": INIT,
                "stopTimeout": "{{ stop_timeout }}",
                # A number is wanted above and text here; a variable within text becomes text, and 0110 is 110.
                "environment": [{"name": Variable.STOP_GRACE_SECONDS.value, "value": "0{{ stop_timeout }}"}],
                "resourceRequirements": [{"type": "GPU", "value": "{{ gpus }}"}],
                "linuxParameters": {"sharedMemorySize": "{{ shared_memory }}"},
                "logConfiguration": {
                    "logDriver": "awslogs",
                    "options": {
                        "awslogs-group": _output(outputs, "LogGroup"),
                        "awslogs-region": region,
                        "awslogs-stream-prefix": "task",
                        "mode": "non-blocking",  # a slow log service must not hold up training
                    },
                },
            }
        ],
    }


def _output(outputs: Mapping[str, str], name: str) -> str:
    if name not in outputs:
        raise ConfigError(f"the stack has no output {name}: it was made from an older template; run `crucible aws up`")
    return outputs[name]


def register(
    outputs: Mapping[str, str], parameters: Mapping[str, str], options: PoolOptions, *, deploy: bool = True
) -> list[str]:
    """Create or update both pools on the Prefect server that `PREFECT_API_URL` names; returns their names.

    With `deploy`, `train/<pool>` is deployed to each, its code taken from the image's working directory. Raises
    `ConfigError` if `train/local`, which it is modelled on, has not been deployed.
    """
    return [
        registration.register(
            options.prefix + pool,
            WORKER_TYPE,
            functools.partial(_template_over, pool, outputs, options),
            runs=f"on {options.prefix}{pool}",
            deploy=deploy,
            description=f"GPU training on EC2 {pool.removeprefix('ec2-')} through ECS cluster {outputs['ClusterArn']}.",
            concurrency_limit=int(parameters.get(SIZE_PARAMETERS[pool], "0")) or None,
            is_paused=False,
        )
        for pool in (SPOT, ON_DEMAND)
    ]


def _template_over(
    pool: str, outputs: Mapping[str, str], options: PoolOptions, former: Mapping[str, Any]
) -> dict[str, Any]:
    return pool_template(pool, outputs, replace(options, settings={**former, **options.settings}))


def save_store_block(name: str, data: Mapping[str, Any]) -> None:
    """Create or update the `Crucible Store` block of that name on the Prefect server.

    Raises `ConfigError` if the server does not know the block's type yet.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import BlockDocumentCreate, BlockDocumentUpdate
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            block_type = client.read_block_type_by_slug(STORE_BLOCK)
        except ObjectNotFound as error:
            raise ConfigError(
                "the Crucible Store block is not registered on this Prefect server: run `crucible up` (or `prefect "
                "block register --file blocks/store.py`) first"
            ) from error
        schema = client.get_most_recent_block_schema_for_block_type(block_type.id)
        assert schema is not None, "a registered block type has a schema"
        try:
            document = client.read_block_document_by_name(name, STORE_BLOCK)
            update = BlockDocumentUpdate(block_schema_id=schema.id, data=dict(data), merge_existing_data=False)
            client.update_block_document(document.id, update)
        except ObjectNotFound:
            create = BlockDocumentCreate(
                name=name, data=dict(data), block_schema_id=schema.id, block_type_id=block_type.id
            )
            client.create_block_document(create)


def pause(prefix: str = "") -> list[str]:
    """Stop both pools from handing out new runs; returns the names of those that were there."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    paused = []
    with get_client(sync_client=True) as client:
        for pool in (SPOT, ON_DEMAND):
            try:
                client.update_work_pool(prefix + pool, WorkPoolUpdate(is_paused=True))
            except ObjectNotFound:
                continue
            paused.append(prefix + pool)
    return paused
