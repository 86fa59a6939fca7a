"""What a cluster has: its partitions, their limits and GPUs, read from what `scontrol` and `sinfo` print."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from crucible.errors import ConfigError
from crucible.pools.slurm.failures import SlurmFailure, refusal
from crucible.pools.slurm.shell import Shell

DEFAULT_KILL_WAIT_SECONDS = 30
_CONFIG, _PARTITIONS, _GPUS = "crucible-config", "crucible-partitions", "crucible-gpus"
_ASK = f"""\
command -v sbatch >/dev/null || {{ echo "sbatch: not found" >&2; exit 127; }}
echo {_CONFIG} && scontrol show config || exit 1
echo {_PARTITIONS} && scontrol show partition --oneliner || exit 1
echo {_GPUS} && sinfo --noheader --format='%R|%G' || exit 1
"""


@dataclass(frozen=True)
class Partition:
    """One partition. Times in seconds; None: no limit."""

    name: str
    default: bool = False
    up: bool = True
    longest_seconds: int | None = None
    preemptible: bool = False
    grace_seconds: int = 0
    """From the beginning of a preemption to SIGTERM."""
    gpus: dict[str, int] = field(default_factory=dict)
    """The most of each type on one node."""


@dataclass(frozen=True)
class Inventory:
    """A whole cluster."""

    name: str
    version: str
    kill_wait_seconds: int
    partitions: tuple[Partition, ...]

    def partition(self, name: str | None) -> Partition:
        """The partition of that name; None: the default one. Raises `ConfigError`."""
        found = [part for part in self.partitions if (part.default if name is None else part.name == name)]
        if found:
            return found[0]
        names = ", ".join(part.name for part in self.partitions)
        if name is None:
            raise ConfigError(f"--partition: the cluster has no default partition; name one of {names}")
        raise ConfigError(f"--partition {name!r}: the cluster has no such partition; it has {names}")


async def read_inventory(shell: Shell) -> Inventory:
    """Ask the cluster. Raises `SlurmFailure` when it does not answer or is not there."""
    done = await shell.run(_ASK)
    if done.code:
        found: SlurmFailure = refusal(done.code, done.errors, shell.login_node, reached=done.reached)
        raise found
    return parse_inventory(done.output)


def parse_inventory(text: str) -> Inventory:
    """The inventory in the output of the commands above."""
    config_text, _, rest = text.partition(f"{_CONFIG}\n")[2].partition(f"{_PARTITIONS}\n")
    partitions_text, _, gpus_text = rest.partition(f"{_GPUS}\n")
    config = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", config_text, re.M))
    gpus: dict[str, dict[str, int]] = {}
    for line in gpus_text.splitlines():
        name, _, resources = line.strip().partition("|")
        for kind, count in re.findall(r"gpu:(?:([\w.-]+):)?(\d+)", resources):
            most = gpus.setdefault(name, {})
            most[kind] = max(most.get(kind, 0), int(count))
    preempts = config.get("PreemptType", "preempt/none") != "preempt/none"
    found = []
    for line in partitions_text.splitlines():
        values = dict(re.findall(r"(\w+)=(\S+)", line))
        if "PartitionName" not in values:
            continue
        name = values["PartitionName"]
        found.append(
            Partition(
                name=name,
                default=values.get("Default") == "YES",
                up=values.get("State", "UP") == "UP",
                longest_seconds=_seconds(values.get("MaxTime", "")),
                preemptible=preempts and values.get("PreemptMode", "OFF") not in ("OFF", "GANG"),
                grace_seconds=int(values.get("GraceTime", "0")),
                gpus=gpus.get(name, {}),
            )
        )
    kill_wait = re.match(r"\d+", config.get("KillWait", ""))
    return Inventory(
        name=config.get("ClusterName", ""),
        version=config.get("SLURM_VERSION", ""),
        kill_wait_seconds=int(kill_wait[0]) if kill_wait else DEFAULT_KILL_WAIT_SECONDS,
        partitions=tuple(found),
    )


def _seconds(time: str) -> int | None:
    """Of Slurm's way to write a time: `1-00:00:00`, `30:00`; None for UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", time)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
