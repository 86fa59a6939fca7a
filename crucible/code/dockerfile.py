"""The Dockerfile of a folder: whether it counts for a run."""

from __future__ import annotations

from collections.abc import Collection

from crucible.errors import ConfigError

DOCKERFILE = "Dockerfile"
BUILT_FOR = ("docker-gpu", "ec2-spot", "ec2-on-demand")
"""Pools whose images are built from a folder's Dockerfile; on `local` it is not used."""


def find_dockerfile(wanted: str, files: Collection[str], pool: str, image: str) -> str:
    """The Dockerfile that the image of a run on `pool` is built from; empty: none, the pool's image or `image` is used.

    `wanted`: a file, `none`, or empty to look for one among `files`. Raises `ConfigError` where it cannot be used.
    """
    if pool == "local" or wanted == "none" or image:
        return ""
    if wanted and wanted not in files:
        raise ConfigError(f"dockerfile: {wanted} is not among the files that travel; write none for none")
    found = wanted or (DOCKERFILE if DOCKERFILE in files else "")
    if found and pool not in BUILT_FOR:
        raise ConfigError(
            f"dockerfile: images for {pool} are not built from a folder; push one that holds Crucible and name it with "
            "resources: {image: …}, or write dockerfile: none to use the pool's"
        )
    return found
