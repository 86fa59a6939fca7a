"""What an image is built from: its base, and wheels that lie on this machine."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crucible.errors import ServiceError
from crucible.pools.docker.engine import connect
from crucible.pools.docker.host_base import ensure_host_base

PUBLIC_BASE = "python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b"
"""By its digest, as in images/Dockerfile."""
FROM_HOST = "host"
"""Asks for a base of this machine's own files, without packages."""
WHEELS = "crucible-wheels"


@dataclass(frozen=True)
class Base:
    """An image to build on."""

    reference: str
    has_packages: bool = False


def choose_base(wanted: str | None, requirements: Path, on_line: Callable[[str], None]) -> Base:
    """The base image to build on: the one wanted, else the public one, else one from this machine's own files.

    Raises `ServiceError` when none of them can be had.
    """
    from docker.errors import APIError, ImageNotFound

    client = connect()
    try:
        if wanted == FROM_HOST:
            return Base(ensure_host_base(client, None))
        if wanted is not None:
            return Base(wanted)
        try:
            client.images.get(PUBLIC_BASE)
        except ImageNotFound:
            on_line(f"pulling {PUBLIC_BASE}")
            try:
                client.images.pull(PUBLIC_BASE)
            except APIError as error:
                on_line(f"no registry answers ({error.explanation}): the base is made from this machine's own files")
                return Base(ensure_host_base(client, requirements, on_line), has_packages=True)
        return Base(PUBLIC_BASE)
    finally:
        client.close()


def import_local_wheels(on_line: Callable[[str], None]) -> str | None:
    """An image with the torch wheels of the folders that pip looks into (`find-links`); None when there are none."""
    wheels = [wheel for folder in _find_links() for wheel in sorted(folder.glob("torch-*.whl"))]
    if not wheels:
        return None
    on_line(f"using {', '.join(wheel.name for wheel in wheels)} from this machine")
    facts = [(wheel.name, wheel.stat().st_size, wheel.stat().st_mtime_ns) for wheel in wheels]
    reference = f"{WHEELS}:{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"
    client = connect()
    known = client.images.list(name=reference)
    client.close()
    if known:
        return reference
    with subprocess.Popen(
        ["docker", "import", "-", reference], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as importing:
        assert importing.stdin is not None
        assert importing.stderr is not None
        with importing.stdin as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
            for wheel in wheels:
                tar.add(wheel, wheel.name)
        said = importing.stderr.read().decode(errors="replace")
    if importing.returncode:
        raise ServiceError(f"docker import failed: {said.strip()}")
    return reference


def _find_links() -> list[Path]:
    """The folders among pip's `find-links`, from its own configuration."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True, check=False
    )
    places = done.stdout.split() + os.environ.get("PIP_FIND_LINKS", "").split()
    folders = (Path(place.removeprefix("file://")) for place in dict.fromkeys(places))
    return [folder for folder in folders if folder.is_dir()]
