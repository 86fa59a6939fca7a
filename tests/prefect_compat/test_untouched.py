"""Installing Crucible changes no worker and no server but its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import inspect
from prefect.plugins import load_prefect_collections

failed = {name: found for name, found in load_prefect_collections().items() if isinstance(found, Exception)}
assert not failed, failed

from prefect.workers.base import BaseWorker
import prefect.states
from prefect.client.orchestration._deployments.client import DeploymentAsyncClient
from prefect.utilities import processutils
import prefect_aws.observers.ecs as observers
import aiosqlite
import docker.api.container

kept = {
    "ecs": "prefect_aws.workers.ecs_worker",
    "process": "prefect.workers.process",
    "docker": "prefect_docker.worker",
}
for type_, module in kept.items():
    worker = BaseWorker.get_worker_class_from_type(type_)
    for cls in filter(None, (worker, worker.job_configuration, worker.job_configuration_variables)):
        assert cls.__module__ == module, (type_, cls)
        for name, method in vars(cls).items():
            if inspect.isfunction(method):
                assert "crucible" not in method.__module__, (cls, name, method.__module__)
for entries in observers.ecs_observer.event_handlers.values():
    assert {entry.handler.__module__ for entry in entries} <= {observers.__name__}
assert observers.Crashed is prefect.states.Crashed
assert DeploymentAsyncClient.read_deployment_by_name.__module__ == DeploymentAsyncClient.__module__
for owner, name in [
    (processutils, "open_process"),
    (aiosqlite.Cursor, "execute"),
    (docker.api.container.ContainerApiMixin, "create_container"),
]:
    assert "crucible" not in inspect.unwrap(getattr(owner, name)).__module__, name
types = set(BaseWorker.get_all_available_worker_types())
assert {"crucible-ecs", "docker-gpu", "modal"} <= types, types
"""


def test_somebody_elses_workers_and_server_are_prefects_own(tmp_path: Path) -> None:
    """As `prefect worker start` for a pool of somebody else: every collection and plugin is loaded."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path)}
    environment |= {"PREFECT_PLUGINS_ENABLED": "true", "PREFECT_PLUGINS_ALLOW": "crucible"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
