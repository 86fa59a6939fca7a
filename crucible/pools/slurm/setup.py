"""`crucible slurm setup`: the pool `slurm`, written from what the cluster says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from crucible.catalog.offers import Offer, cluster_offers_file, load_catalog, write_table
from crucible.errors import ConfigError
from crucible.pools.slurm.cluster import path_in_shell
from crucible.pools.slurm.inventory import Inventory, Partition, read_inventory
from crucible.pools.slurm.pool import POOL, PoolOptions, register
from crucible.pools.slurm.shell import Shell

_QUEUE_SECONDS = 300.0
_PREEMPTION_HOURS = 24.0
"""Assumed where nothing is known yet: between two preemptions."""
_CHECK = """\
cd {workdir} || {{ echo "workdir: there is no folder {workdir} on the cluster" >&2; exit 1; }}
[ -z {venv} ] || {venv}/bin/python -c 'import crucible' ||
  {{ echo "venv: {venv} has no Python with Crucible" >&2; exit 1; }}
mkdir -p {logs} || exit 1
"""


@dataclass(frozen=True)
class SlurmSetup:
    """What a person says about the cluster; what is left out, the cluster says."""

    login_node: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gpus: str | None = None
    time_limit_minutes: int | None = None
    venv: str | None = None
    workdir: str | None = None
    store: str | None = None
    """Address of the store as the nodes reach it."""
    usd_per_gpu_hour: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)
    name: str = POOL
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ready:
    """What was set up."""

    inventory: Inventory
    partition: Partition
    settings: Mapping[str, Any]
    environment: Mapping[str, str]


async def set_up(wanted: SlurmSetup, here: Mapping[str, str]) -> Ready:
    """Ask the cluster, check what the pool will rely on, and put pool, deployment and offer where they belong.

    `here`: defaults of this machine for `venv`, `workdir` and `store`, used where the worker is on the login node.

    Raises:
        SlurmFailure: the cluster does not answer.
        ConfigError: a setting does not fit the cluster.
    """
    shell = Shell(wanted.login_node)
    inventory = await read_inventory(shell)
    partition = inventory.partition(wanted.partition or wanted.settings.get("partition"))
    settings = pool_settings(wanted, inventory, partition)
    if wanted.login_node is None:
        settings = {"venv": here["venv"], "workdir": here["workdir"], **settings}
    environment = {"CRUCIBLE_STORE": wanted.store or here["store"], **wanted.environment}
    options = PoolOptions(name=wanted.name, environment=environment, settings=settings)
    await _check_folders(shell, settings)
    register(options)
    _write_offer(wanted, partition, settings)
    return Ready(inventory, partition, settings, environment)


def pool_settings(wanted: SlurmSetup, inventory: Inventory, partition: Partition) -> dict[str, Any]:
    """The worker's variables for this partition. Raises `ConfigError` for a wish that it cannot fulfil."""
    longest = None if partition.longest_seconds is None else partition.longest_seconds // 60
    minutes = wanted.time_limit_minutes
    if minutes is not None and longest is not None and minutes > longest:
        raise ConfigError(
            f"--time-limit {minutes}: jobs on {partition.name} may take {longest} minutes at most; longer work goes on "
            "in the next job by itself"
        )
    gpus = wanted.gpus
    if gpus is None:
        gpus = "1" if partition.gpus else ""
    _require_gpus(gpus, partition)
    given = {
        "login_node": wanted.login_node,
        "partition": partition.name,
        "account": wanted.account,
        "qos": wanted.qos,
        "gpus": gpus,
        "time_limit_minutes": minutes or longest,
        "venv": wanted.venv,
        "workdir": wanted.workdir,
        "preemption_seconds": partition.grace_seconds + inventory.kill_wait_seconds,
        "kill_seconds": inventory.kill_wait_seconds,
    }
    return {name: value for name, value in given.items() if value is not None} | dict(wanted.settings)


def _require_gpus(gpus: str, partition: Partition) -> None:
    kind, _, count = gpus.rpartition(":")
    if not count.isdigit() or int(count) == 0:
        return  # none, or no number: the pool's own check says what to write
    has = ", ".join(f"{most} {name}".strip() for name, most in partition.gpus.items()) or "none"
    most = max(partition.gpus.values(), default=0) if not kind else partition.gpus.get(kind, 0)
    if int(count) > most:
        raise ConfigError(f"--gpus {gpus!r}: a node of {partition.name} has {has}")


async def _check_folders(shell: Shell, settings: Mapping[str, Any]) -> None:
    """The project and its environment are there, as the login node sees it."""
    text = _CHECK.format(
        workdir=path_in_shell(str(settings.get("workdir", "~/crucible"))),
        venv=path_in_shell(str(settings.get("venv", ""))),
        logs=path_in_shell(str(settings.get("log_folder", "~/.crucible/logs/slurm"))),
    )
    if (done := await shell.run(text)).code:
        raise ConfigError(" ".join(done.errors.split()[-40:]))


def _write_offer(wanted: SlurmSetup, partition: Partition, settings: Mapping[str, Any]) -> None:
    """The pool's row of the catalog: free, or at the rate that was given."""
    kind, _, count = str(settings.get("gpus") or "0").rpartition(":")
    gpus = int(count) if count.isdigit() else 0
    kind = kind or next(iter(partition.gpus), "")
    like = _same_gpu(kind) if gpus else None
    minutes = settings.get("time_limit_minutes")
    offer = Offer(
        pool=wanted.name,
        instance=partition.name,
        usd_per_hour=wanted.usd_per_gpu_hour * gpus,
        gpu=like.gpu if like else kind.upper() if gpus else "",
        gpus=gpus,
        gpu_memory_gib=like.gpu_memory_gib if like else None,
        startup_seconds=_QUEUE_SECONDS,
        mtbf_hours=_PREEMPTION_HOURS if partition.preemptible else None,
        lifetime_hours=float(minutes) / 60 if minutes else None,
        peak_tflops_fp32=like.peak_tflops_fp32 if like else None,
        peak_tflops_fp16=like.peak_tflops_fp16 if like else None,
        peak_tflops_bf16=like.peak_tflops_bf16 if like else None,
        memory_gb_per_second=like.memory_gb_per_second if like else None,
        tenancy="shared",
        assumed=("startup_seconds", *(("mtbf_hours",) if partition.preemptible else ())),
        source="crucible slurm setup",
    )
    others = [known for known in load_catalog() if known.source == offer.source and known.pool != offer.pool]
    write_table([*others, offer], cluster_offers_file())


def _same_gpu(kind: str) -> Offer | None:
    """A row of the catalog with the GPU that Slurm calls so; the smallest where several have the name."""
    wanted = "".join(filter(str.isalnum, kind)).lower()
    rows = [offer for offer in load_catalog() if offer.gpu and wanted]
    fitting = [
        offer
        for offer in rows
        if (name := "".join(filter(str.isalnum, offer.gpu)).lower()) == wanted
        or name.startswith(wanted)
        or wanted.endswith(name)
    ]
    return min(fitting, key=lambda offer: (offer.gpu_memory_gib or 0.0, offer.gpu), default=None)
