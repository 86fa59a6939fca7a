"""What Crucible uses of other packages that they do not document, each with a check that it still has its shape.

Nothing is replaced here: workers of our own extend or call these. `crucible doctor` lists them, and a test runs the
checks against the installed versions.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from crucible.prefect_compat.patches import difference_of


@dataclass(frozen=True)
class PrivateHook:
    """Something undocumented that a pool relies on."""

    package: str
    """The distribution whose top package is `module`; without it the pool does not run here, and nothing is checked."""
    module: str
    what: str
    used_for: str
    versions: str
    """The versions that it was checked with."""
    self_check: Callable[[], str | None]
    """How it differs from what the pool was written for; None: it does not."""


def statuses() -> list[tuple[PrivateHook, str | None]]:
    """Each hook of a package that is installed, and how that differs from what was expected. Imports those packages."""
    return [(hook, difference_of(hook.self_check)) for hook in HOOKS if _is_installed(hook.module)]


def _is_installed(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _takes(function: Any, *parameters: str) -> str | None:
    found = tuple(inspect.signature(function).parameters)
    return None if found == parameters else f"{function.__qualname__} takes {', '.join(found)}"


def _calls(function: Any, *names: str) -> str | None:
    missing = [name for name in names if name not in function.__code__.co_names]
    return f"{function.__qualname__} does not call {', '.join(missing)}" if missing else None


def _docker_worker() -> str | None:
    from docker.models.containers import ContainerCollection
    from prefect_docker.worker import DockerWorker as Worker

    return (
        _takes(Worker._get_client, "self")
        or _takes(Worker._build_container_settings, "self", "docker_client", "configuration")
        or _takes(Worker._create_and_start_container, "self", "configuration")
        or _takes(Worker._create_container, "self", "docker_client", "kwargs")
        or _takes(Worker._watch_container_safe, "self", "container", "configuration", "created_event")
        or _calls(Worker._create_and_start_container, "_build_container_settings", "_create_container")
        or _calls(ContainerCollection.create, "create_container")
    )


def _modal_stats() -> str | None:
    from modal import Sandbox
    from modal_proto import api_pb2

    if not callable(getattr(Sandbox._experimental_stats, "aio", None)):
        return "Sandbox._experimental_stats has no aio"
    fields = api_pb2.SandboxGetStatsResponse.DESCRIPTOR.fields_by_name
    return None if "cost" in fields else f"a sandbox's statistics are {', '.join(fields)}"


def _modal_command() -> str | None:
    from prefect.workers.base import BaseJobConfiguration as Configuration

    return _takes(Configuration._base_flow_run_command) or _calls(
        Configuration.prepare_for_flow_run, "_base_flow_run_command"
    )


def _ecs_observer() -> str | None:
    from prefect_aws.observers import ecs

    wanted = (
        (ecs, ("EcsObserver", "ecs_observer", "fetch_cloudwatch_logs")),
        (ecs.ecs_observer, ("event_handlers", "settings", "on_event")),
        (ecs.FilterCase, ("PRESENT",)),
    )
    missing = [name for owner, names in wanted for name in names if not hasattr(owner, name)]
    return f"prefect_aws.observers.ecs has no {', '.join(missing)}" if missing else None


HOOKS = (
    PrivateHook(
        package="prefect-docker",
        module="prefect_docker",
        what="DockerWorker's steps from settings to container",
        used_for="GPUs, users, folders and restarts of the engine in the pool docker-gpu",
        versions="prefect-docker 0.7.4, docker 7.2.0",
        self_check=_docker_worker,
    ),
    PrivateHook(
        package="modal",
        module="modal",
        what="Sandbox._experimental_stats",
        used_for="what Modal bills for a sandbox",
        versions="modal 1.6.4",
        self_check=_modal_stats,
    ),
    PrivateHook(
        package="prefect",
        module="prefect",
        what="BaseJobConfiguration._base_flow_run_command",
        used_for="the container entrypoint that turns Modal's SIGINT into a request to save",
        versions="prefect 3.8.8 and 3.9.1",
        self_check=_modal_command,
    ),
    PrivateHook(
        package="prefect-aws",
        module="prefect_aws",
        what="prefect_aws.observers.ecs",
        used_for="the diagnosis of ECS tasks that stop",
        versions="prefect-aws 0.7.12",
        self_check=_ecs_observer,
    ),
)
