"""What SkyPilot's errors, and the ends of clusters, mean for a flow run: pure functions over what its SDK reports."""

from __future__ import annotations

import re
from collections.abc import Sequence

from crucible.pools.common.failures import NothingRuns, PoolFailure


class SkyFailure(PoolFailure):
    """Base of all failures on the way to a machine and of all its bad ends; the class names the flow run's state."""

    def __init_subclass__(cls) -> None:
        cls.state_name = cls.__name__


class SkyMissing(SkyFailure):
    """There is no SkyPilot where the worker looks for it, or it does not start."""


class ApiServerUnreachable(SkyFailure):
    """SkyPilot's API server does not answer. Machines go on meanwhile."""


class ApiServerRefused(SkyFailure):
    """SkyPilot's API server wants a login, or is of another version."""


class NoCredentials(SkyFailure):
    """SkyPilot has no access to the cloud."""


class QuotaExceeded(SkyFailure):
    """The account may not have such a machine, or no more of them."""


class NoCapacity(SkyFailure):
    """The cloud has no such machine free now."""


class RequestRefused(SkyFailure):
    """SkyPilot will never do this: no such instance type, region, GPU."""


class LaunchFailed(SkyFailure):
    """SkyPilot failed in a way that is not known here; it may not do so the next time."""


class CatalogMissing(SkyFailure):
    """SkyPilot could not get its table of machines and prices."""


class OutOfReach(SkyFailure):
    """The machine could not reach the Prefect server or the store under the addresses that it would be given."""


class NotPrepared(SkyFailure):
    """The machine came up, and SkyPilot could not get it ready: its own runtime, the project's files."""


class SetupFailed(SkyFailure):
    """The machine came up, and the commands that get it ready failed."""


class ClusterLost(SkyFailure, NothingRuns):
    """The cluster is not there any more: reclaimed by its cloud, or taken down by somebody."""


class TaskEnded(SkyFailure):
    """The task ended without a final state of its flow run."""


PERMANENT = frozenset(
    kind.state_name
    for kind in (SkyMissing, ApiServerRefused, NoCredentials, QuotaExceeded, RequestRefused, OutOfReach, SetupFailed)
)
"""Names of states that another attempt would only repeat: a person has to fix something first."""

_BY_TYPE: dict[str, tuple[type[SkyFailure], str]] = {
    "ApiServerConnectionError": (
        ApiServerUnreachable,
        "SkyPilot's API server does not answer; `sky api start` starts the local one, api_server names another",
    ),
    "ServerTemporarilyUnavailableError": (ApiServerUnreachable, "SkyPilot's API server is not available for now"),
    "RequestInterruptedError": (ApiServerUnreachable, "SkyPilot's API server was restarted meanwhile"),
    "ConcurrentWorkerExhaustedError": (ApiServerUnreachable, "SkyPilot's API server has too much to do"),
    "ApiServerAuthenticationError": (ApiServerRefused, "log in to SkyPilot's API server with `sky api login`"),
    "APIVersionMismatchError": (
        ApiServerRefused,
        "SkyPilot's API server is of another version; install that one with `crucible sky setup --version`",
    ),
    "PermissionDeniedError": (ApiServerRefused, "SkyPilot's API server does not allow that"),
    "NoCloudAccessError": (
        NoCredentials,
        "SkyPilot has no access to the cloud; set up its credentials, then: sky check",
    ),
    "InvalidCloudCredentials": (
        NoCredentials,
        "the cloud does not accept the credentials; renew them, then: sky check",
    ),
    "CloudUserIdentityError": (NoCredentials, "the cloud does not accept the credentials; renew them, then: sky check"),
    "ClusterSetUpError": (NotPrepared, "SkyPilot could not prepare the machine"),
    "CommandError": (NotPrepared, "SkyPilot could not prepare the machine"),
    "ModuleNotFoundError": (SkyMissing, "SkyPilot is not in that environment; run: crucible sky setup"),
    "ClusterDoesNotExist": (ClusterLost, "SkyPilot knows no such cluster any more"),
    "ClusterNotUpError": (ClusterLost, "the cluster is not up any more"),
}
_BY_TEXT: tuple[tuple[str, type[SkyFailure], str], ...] = (
    (
        r"failed to run setup commands on an instance|failed to (rsync|set up|initialize)|runtime setup",
        NotPrepared,
        "SkyPilot could not prepare the machine",
    ),
    (
        r"failed to start skypilot api server|could not connect to skypilot api server",
        ApiServerUnreachable,
        "SkyPilot's API server does not come up; a busy machine needs minutes for it; see ~/.sky/api_server/server.log",
    ),
    (
        r"failed to fetch .*catalog|skypilot-catalog|raw\.githubusercontent\.com|sky-catalog",
        CatalogMissing,
        "SkyPilot could not download its catalog; connect the API server's machine to the internet, or put the files "
        "into ~/.sky/catalogs",
    ),
    (
        r"not enabled|no cloud (access )?is (set up|enabled)|no credentials|run: ?sky check|credentials? (are |is )?"
        r"(invalid|not set|expired)",
        NoCredentials,
        "SkyPilot has no access to the cloud; set up its credentials, then: sky check",
    ),
    (
        r"\b(request|rate) ?limit ?exceeded|throttl|too ?many ?requests|operation rate exceeded|rate exceeded|"
        r"(queries|requests) per (second|minute|day)",
        LaunchFailed,
        "the cloud asks to try again later",
    ),
    (
        r"insufficient.?(instance)?.?capacity|ZONE_RESOURCE_POOL_EXHAUSTED|SkuNotAvailable|AllocationFailed|"
        r"OverconstrainedAllocation|\b(no|not)\b.{0,20}capacity|not (have )?enough (resources|capacity)|stockout|"
        r"no available nodes|no longer any instances available|NoFreeResources",
        NoCapacity,  # also where other zones want quota
        "the cloud has no such machine free now",
    ),
    (
        r"quota|limit ?exceeded|VcpuLimit|MaxSpotInstanceCount|exceeds? (the )?(approved|allowed)|exceeded limit",
        QuotaExceeded,
        "the account has no quota for such a machine; ask for more, or choose another instance type or region",
    ),
    (
        r"invalid instance type|instance type .* (not found|is not)",
        RequestRefused,
        "the cloud has no such instance type; `sky show-gpus --infra CLOUD` lists them",
    ),
    (
        r"invalid (region|zone)|cluster .* not found in slurm config|partition .* not found|context .* not found",
        RequestRefused,
        "the cloud has no such region or zone; change infra",
    ),
    (
        r"catalog does not contain any|no resource satisfying|does not contain any\s+instances",
        RequestRefused,
        "the cloud has no such machine; change instance_type, accelerators or use_spot",
    ),
    (r"spot.*(not supported|unsupported)|not support.*spot", RequestRefused, "the cloud has no spot machines"),
)


def classify(kind: str, message: str, history: Sequence[str] = ()) -> SkyFailure:
    """What an error of SkyPilot's means; `kind` is its class, `history` what each zone answered."""
    said = " ".join(" / ".join((message, *dict.fromkeys(history))).split())
    shown = said if len(said) <= _LONGEST else f"{said[:_LONGEST]}…"
    if kind in _BY_TYPE:
        known, words = _BY_TYPE[kind]
        return known(f"{words}. SkyPilot said: {shown}")
    for pattern, known, words in _BY_TEXT:
        if re.search(pattern, said, re.I):
            return known(f"{words}. SkyPilot said: {shown}")
    if kind == "ResourcesUnavailableError":
        return NoCapacity(f"SkyPilot found no machine. It said: {shown}")
    if kind in ("ConnectionError", "Timeout", "ReadTimeout", "ConnectTimeout", "ProvisionPrechecksError"):
        return ApiServerUnreachable(f"SkyPilot could not reach what it needs: {shown}")
    return LaunchFailed(f"SkyPilot could not do it ({kind}): {shown}")


_LONGEST = 800


def end_of_task(state: str, name: str, last_output: str = "") -> SkyFailure:
    """What the end of a cluster's task is for a flow run without a final state of its own."""
    printed = f"\nIts last output:\n{last_output.strip()}" if last_output.strip() else ""
    if state == "FAILED_SETUP":
        return SetupFailed(
            f"the setup commands of cluster {name} failed; the setting setup of the pool has them{printed}"
        )
    return TaskEnded(
        f"the task of cluster {name} ended ({state}) before the flow run had a final state. What was saved "
        f"stands in the attempt's own record.{printed}"
    )
