"""SkyPilot's own environment. It cannot share Crucible's: SkyPilot 0.14 needs an older click than our tools do."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from crucible.errors import ServiceError
from crucible.home import crucible_home
from crucible.pools.skypilot.failures import SkyMissing

VERSION = "0.14.1"
"""Checked with this one; another release may name its fields differently."""


def folder() -> Path:
    """Where `crucible sky setup` makes it."""
    return crucible_home() / "skypilot"


def python_of(setting: str = "") -> Path:
    """The Python that has SkyPilot. `setting`: the pool's own choice. Raises `SkyMissing`."""
    path = Path(setting).expanduser() if setting else folder() / "bin" / "python"
    if not path.is_file():
        where = f"sky_python is {setting!r}, and there is no such file" if setting else f"there is none in {folder()}"
        raise SkyMissing(f"SkyPilot is not installed: {where}; run: crucible sky setup")
    return path


def sky_command() -> Path:
    """SkyPilot's own command, for what a person does with it (`sky check`)."""
    return folder() / "bin" / "sky"


def make(clouds: Sequence[str] = (), version: str = VERSION) -> Path:
    """Make the environment, or bring it up to date, with what these clouds need; returns its Python.

    Raises `ServiceError` when packages cannot be installed.
    """
    python = folder() / "bin" / "python"
    extras = f"[{','.join(clouds)}]" if clouds else ""
    steps = [] if python.is_file() else [["venv", "--quiet", "--python", sys.executable, str(folder())]]
    steps.append(["pip", "install", "--quiet", "--python", str(python), f"skypilot{extras}=={version}"])
    for step in steps:
        done = subprocess.run([sys.executable, "-m", "uv", *step], capture_output=True, text=True, check=False)
        if done.returncode:
            said = " ".join(done.stderr.split())[-600:]
            raise ServiceError(f"SkyPilot {version} could not be installed into {folder()}: {said}")
    return python
