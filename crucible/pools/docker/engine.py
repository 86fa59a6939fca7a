"""This machine's Docker engine: reaching it, and finding a client that can build our Dockerfile."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crucible.errors import ServiceError

if TYPE_CHECKING:
    from docker import DockerClient

ANSWER_SECONDS = 60
_BUILDKIT_PLUGIN_SINCE = 23
"""Clients before this version have BuildKit built in; later ones need the buildx plugin for it."""


def connect(timeout: int = ANSWER_SECONDS) -> DockerClient:
    """A client of the engine that `DOCKER_HOST` names, or of the usual one.

    Raises `ServiceError` when the `docker` extra is not installed or no engine answers.
    """
    try:
        import docker
        from docker.errors import DockerException
    except ImportError as error:
        raise ServiceError("the docker extra is not installed: pip install -c constraints.txt '.[docker]'") from error
    try:
        client = docker.from_env(timeout=timeout)
        client.ping()
    except (DockerException, OSError) as error:
        raise ServiceError(
            f"the Docker engine does not answer ({_where()}): install Docker Engine and start it; your user must be in "
            f"the group docker. Its message: {str(error).splitlines()[0]}"
        ) from error
    return client


def gpu_runtime(info: dict[str, Any]) -> bool:
    """Whether the engine, by its own `info`, can hand out NVIDIA GPUs.

    Newer engines do it through CDI devices, older ones through a runtime of that name.
    """
    return "nvidia" in info.get("Runtimes", {}) or bool(info.get("DiscoveredDevices"))


def buildkit_command() -> str:
    """Path of a `docker` command with BuildKit. Raises `ServiceError` when there is none."""
    found = [Path(folder, "docker") for folder in [*os.get_exec_path(), "/usr/bin"]]
    commands = dict.fromkeys(str(path) for path in found if os.access(path, os.X_OK))
    for command in commands:
        if _has_buildkit(command):
            return command
    raise ServiceError(
        "no docker command here can build with BuildKit: install the buildx plugin (on Debian and Ubuntu: apt install "
        "docker-buildx-plugin, or docker.io, whose client has it built in)"
        if commands
        else "there is no docker command here: install Docker"
    )


def _has_buildkit(command: str) -> bool:
    if _quietly(command, "buildx", "version").returncode == 0:
        return True
    version = _quietly(command, "version", "--format", "{{.Client.Version}}").stdout
    major = version.strip().partition(".")[0]
    return major.isdigit() and int(major) < _BUILDKIT_PLUGIN_SINCE


def _quietly(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _where() -> str:
    return os.environ.get("DOCKER_HOST") or "the usual socket"
