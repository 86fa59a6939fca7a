"""What a cluster has: its partitions, their limits and GPUs, read from what `scontrol` and `sinfo` print.

Slurm may take a job that its partition will never run, and leave it in the queue; `Partition.refuses` knows before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from crucible.errors import ConfigError
from crucible.pools.slurm.configuration import SlurmJobConfiguration
from crucible.pools.slurm.failures import SlurmFailure, refusal
from crucible.pools.slurm.shell import Shell
from crucible.resources import Resources

DEFAULT_KILL_WAIT_SECONDS = 30
_CONFIG, _PARTITIONS, _GPUS = "crucible-config", "crucible-partitions", "crucible-gpus"
_ASK = f"""\
command -v sbatch >/dev/null || {{ echo "sbatch: not found" >&2; exit 127; }}
echo {_CONFIG} && scontrol show config || exit 1
echo {_PARTITIONS} && scontrol show partition --oneliner || exit 1
echo {_GPUS} && sinfo --noheader --format='%R|%G' || exit 1
"""
_PARTITIONS_ALONE = "scontrol show partition --oneliner"
_QOS_FLAGS = "sacctmgr --noheader --parsable2 show qos format=flags"


@dataclass(frozen=True)
class NameRule:
    """Who may use a partition."""

    allowed: tuple[str, ...] = ()
    """Empty: all that are not denied."""
    denied: tuple[str, ...] = ()

    def admits(self, name: str) -> bool:
        """Slurm writes accounts and QOS in lower case."""
        return name.lower() not in self.denied and (not self.allowed or name.lower() in self.allowed)

    def __str__(self) -> str:
        return f"it allows {', '.join(self.allowed)}" if self.allowed else f"it denies {', '.join(self.denied)}"

    @classmethod
    def parse(cls, values: Mapping[str, str], what: str) -> NameRule:
        """From `AllowAccounts=…` or `DenyAccounts=…`; `what` is `Accounts` or `Qos`."""

        def names(key: str) -> tuple[str, ...]:
            text = values.get(key, "")
            return () if text in ("", "ALL", "(null)", "N/A") else tuple(text.lower().split(","))

        return cls(names(f"Allow{what}"), names(f"Deny{what}"))


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
    most_nodes: int | None = None
    accounts: NameRule = NameRule()
    qos: NameRule = NameRule()

    def refuses(self, minutes: int | None, nodes: int, account: str | None, qos: str | None) -> str | None:
        """Why a job with this time limit and number of nodes would never start here; None if it might.

        An argument that is None stands for the cluster's default, which is not known.
        """
        if minutes is not None and self.longest_seconds is not None and 60 * minutes > self.longest_seconds:
            return (
                f"time_limit_minutes: {minutes} is over the maximum of partition {self.name}, "
                f"{self.longest_seconds // 60}; ask for less, longer work goes on in a new job by itself"
            )
        if self.most_nodes is not None and nodes > self.most_nodes:
            return f"nodes: {nodes} are more than a job on partition {self.name} may have, {self.most_nodes}"
        for name, value, rule in (("account", account, self.accounts), ("qos", qos, self.qos)):
            if value is not None and not rule.admits(value):
                return f"{name}: {value} may not use partition {self.name} ({rule}); set {name}, or another partition"
        return None


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
    partitions = [
        replace(part, preemptible=preempts and part.preemptible, gpus=gpus.get(part.name, {}))
        for part in parse_partitions(partitions_text)
    ]
    kill_wait = re.match(r"\d+", config.get("KillWait", ""))
    return Inventory(
        name=config.get("ClusterName", ""),
        version=config.get("SLURM_VERSION", ""),
        kill_wait_seconds=int(kill_wait[0]) if kill_wait else DEFAULT_KILL_WAIT_SECONDS,
        partitions=tuple(partitions),
    )


def parse_partitions(text: str) -> list[Partition]:
    """The partitions in the output of `scontrol show partition --oneliner`, which does not know their GPUs."""
    lines = [dict(re.findall(r"(\w+)=(\S+)", line)) for line in text.splitlines()]
    return [
        Partition(
            name=values["PartitionName"],
            default=values.get("Default") == "YES",
            up=values.get("State", "UP") == "UP",
            longest_seconds=_seconds(values.get("MaxTime", "")),
            preemptible=values.get("PreemptMode", "OFF") not in ("OFF", "GANG"),
            grace_seconds=int(values.get("GraceTime", "0")),
            most_nodes=int(values["MaxNodes"]) if values.get("MaxNodes", "").isdigit() else None,
            accounts=NameRule.parse(values, "Accounts"),
            qos=NameRule.parse(values, "Qos"),
        )
        for values in lines
        if "PartitionName" in values
    ]


async def never_starts(shell: Shell, wanted: SlurmJobConfiguration) -> str | None:
    """Why none of the job's partitions would ever start it; None if one might, or if the cluster does not answer."""
    named = wanted.partition.split(",") if wanted.partition else None
    minutes, nodes = wanted.time_limit_minutes, Resources(nodes=wanted.nodes).node_range.least
    try:
        done = await shell.run(_PARTITIONS_ALONE)
        known = [] if done.code else parse_partitions(done.output)
        partitions = [part for part in known if (part.name in named if named else part.default)]
        if len(partitions) < len(named or "1"):
            return None  # sbatch knows more, or says what is wrong
        if (problem := _all_refuse(partitions, minutes, nodes, wanted.account, wanted.qos)) is None:
            return None
        flags = await shell.run(_QOS_FLAGS)
    except SlurmFailure:
        return None
    if flags.code:  # no accounting
        return problem
    if re.search(r"Partition(TimeLimit|MaxNodes)", flags.output):  # a QOS, perhaps the job's, may exceed the limits
        minutes, nodes = None, 1
    # Newer releases also admit the child accounts of an allowed account.
    return _all_refuse(partitions, minutes, nodes, None, wanted.qos)


def _all_refuse(
    partitions: Sequence[Partition], minutes: int | None, nodes: int, account: str | None, qos: str | None
) -> str | None:
    problems = [part.refuses(minutes, nodes, account, qos) for part in partitions]
    return problems[0] if all(problems) else None


def _seconds(time: str) -> int | None:
    """Of Slurm's way to write a time: `1-00:00:00`, `30:00`; None for UNLIMITED."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", time)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
