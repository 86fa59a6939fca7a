"""Debian packages that a rehearsal needs and `pip` cannot install."""

from __future__ import annotations

import os
import shutil
import subprocess

from crucible.errors import ServiceError

__all__ = ["install"]

_LOCK = "/var/lib/dpkg"
"""The folder is locked, not a file in it that dpkg locks itself. apt-get fails where another one is at work;
`scripts/docker_engine.sh` takes this lock, too."""


def install(*packages: str) -> None:
    """Install packages as root. Raises `ServiceError` with the command and apt-get's last line."""
    command = f"apt-get install --no-install-recommends {' '.join(packages)}"
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise ServiceError(f"it needs root and Debian's packages: {command}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-qq"], ["install", "--yes", "-qq", "--no-install-recommends", *packages]):
        locked = ["flock", _LOCK, "apt-get", *arguments]
        done = subprocess.run(locked, env=quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise ServiceError(f"{command} failed: {' '.join(last)}")
