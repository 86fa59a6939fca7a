"""The image of a folder's own Dockerfile, with Crucible added to it in an environment of its own.

The script then runs with the programs of its image, and the agent beside it with Crucible's: `CRUCIBLE_SCRIPT_PATH` in
the image is the PATH that the Dockerfile left.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crucible.errors import ConfigError
from crucible.pools.docker.engine import connect
from crucible.pools.docker.images import OnLine, Recipe, build

_LOOK = (
    "import importlib.util as u, json, os, subprocess, sys; "
    "v = '/opt/venv/bin/python'; "
    "mine = os.path.exists(v) and subprocess.run([v, '-c', 'import prefect'], capture_output=True).returncode == 0; "
    "print(json.dumps({'version': sys.version_info[:2], 'venv': bool(u.find_spec('ensurepip')), "
    "'taken': os.path.isdir('/opt/venv') and not mine, 'ready': mine}))"
)


def own_recipe(folder: Path, dockerfile: str, on_line: OnLine = lambda line: None) -> Recipe:
    """Build the folder's image, and return the recipe of the one with Crucible on top, which is not built yet.

    Raises `ServiceError` with the builder's last lines, `ConfigError` for an image in which Crucible cannot run.
    """
    base = build(Recipe(project=folder, dockerfile=folder / dockerfile), on_line)
    path = _require_python(base, dockerfile)
    return Recipe("cpu", base=base, arguments={"SCRIPT_PATH": path})


def _require_python(image: str, dockerfile: str) -> str:
    """The PATH of the image. Raises `ConfigError` unless it has a Python that Crucible can run with."""
    from docker.errors import APIError, ContainerError

    client = connect()
    try:
        said = client.containers.run(
            image, ["-c", _LOOK], entrypoint=["python3"], remove=True, network_mode="none", stderr=False
        )
        found: dict[str, Any] = json.loads(said)
        variables = client.images.get(image).attrs["Config"].get("Env") or []
    except (APIError, ContainerError, ValueError) as error:
        raise ConfigError(
            f"{dockerfile}: the image has no python3 that starts, and Crucible's agent needs Python 3.11 or newer "
            "beside the script"
        ) from error
    finally:
        client.close()
    if tuple(found["version"]) < (3, 11) or not (found["venv"] or found["ready"]):
        version = ".".join(map(str, found["version"]))
        raise ConfigError(
            f"{dockerfile}: the image has Python {version}{'' if found['venv'] else ' without venv'}, and Crucible's "
            "agent needs Python 3.11 or newer with venv beside the script"
        )
    if found["taken"]:
        raise ConfigError(
            f"{dockerfile}: the image has a folder /opt/venv, where Crucible is installed; use another one"
        )
    return next(
        (entry.partition("=")[2] for entry in variables if entry.startswith("PATH=")), "/usr/local/bin:/usr/bin:/bin"
    )
