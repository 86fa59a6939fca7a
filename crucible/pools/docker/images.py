"""Crucible's images: what is in them, by content digest, and their build.

An image's tag is `<variant>-<digest>`, the digest being taken over everything that decides its content: the files that
go to the builder, the Dockerfile, the base asked for and the arguments. So an unchanged tree builds nothing, and the
tag on record says which code an attempt ran.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import crucible
from crucible.errors import ConfigError, ServiceError
from crucible.pools.docker.bases import choose_base, import_local_wheels
from crucible.pools.docker.engine import buildkit_command, connect

Variant = Literal["cpu", "gpu"]
OnLine = Callable[[str], None]

PROJECT = Path(crucible.__file__).parents[1]
REPOSITORY = "crucible"
DOCKERFILE = Path("images/Dockerfile")
REQUIREMENTS = Path("images/requirements.txt")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what an image holds."""

    variant: Variant = "cpu"
    project: Path = PROJECT
    """The folder that goes to the builder, as far as its `.dockerignore` lets it."""
    dockerfile: Path | None = None
    """A Dockerfile of the user's own instead of ours; built from the same folder."""
    base: str | None = None
    """Base image; None: the public one, or one from this machine's own files where no registry answers."""
    arguments: dict[str, str] = field(default_factory=dict)
    """More build arguments."""

    @property
    def file(self) -> Path:
        return self.dockerfile or self.project / DOCKERFILE

    @property
    def digest(self) -> str:
        """Twelve hex digits over the content. Raises `ConfigError` when the Dockerfile is missing."""
        if not self.file.is_file():
            raise ConfigError(f"dockerfile: there is no file {self.file}")
        digest = hashlib.sha256(repr((self.variant, self.base, sorted(self.arguments.items()))).encode())
        for name, path in [("Dockerfile", self.file), *context_files(self.project)]:
            digest.update(f"\0{name}\0{os.access(path, os.X_OK)}\0".encode(errors="surrogateescape"))
            with path.open("rb") as file:  # a folder of the user's own may hold data, too
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()[:12]

    @property
    def reference(self) -> str:
        """Repository and tag, such as `crucible:cpu-0123456789ab`."""
        return f"{REPOSITORY}:{self.tag}"

    @property
    def tag(self) -> str:
        return f"{'own' if self.dockerfile else self.variant}-{self.digest}"


def context_files(project: Path) -> Iterator[tuple[str, Path]]:
    """The files below `project` that go to the builder, by their names there, sorted."""
    from docker.utils.build import exclude_paths

    ignore = project / ".dockerignore"
    patterns = [line.strip() for line in ignore.read_text().splitlines()] if ignore.is_file() else []
    wanted = exclude_paths(str(project), [line for line in patterns if line and not line.startswith("#")])
    for name in sorted(wanted):
        if (path := project / name).is_file():
            yield name, path


def variant_for(gpus: object) -> Variant:
    """The image for a stage: the GPU one wherever a GPU is asked for, the small one otherwise."""
    return "cpu" if str(gpus).strip() in ("", "0", "none", "None") else "gpu"


def find(recipe: Recipe) -> str | None:
    """The recipe's reference if this engine has the image. Raises `ServiceError` when no engine answers."""
    client = connect()
    try:
        return recipe.reference if client.images.list(name=recipe.reference) else None
    finally:
        client.close()


def known() -> list[dict[str, Any]]:
    """The images of ours that this engine has, newest first: image, megabytes, created, revision."""
    client = connect()
    try:
        found = [image.attrs for image in client.images.list(name=REPOSITORY)]
    finally:
        client.close()
    return [
        {
            "image": reference,
            "megabytes": round(attributes["Size"] / 1e6),
            "created": attributes["Created"][:19] + "Z",
            "revision": (attributes["Config"].get("Labels") or {}).get("org.opencontainers.image.revision", ""),
        }
        for attributes in sorted(found, key=lambda attributes: str(attributes["Created"]), reverse=True)
        for reference in attributes["RepoTags"]
    ]


def build(recipe: Recipe, on_line: OnLine = lambda line: None, *, again: bool = False) -> str:
    """Build the image unless this engine has it, and return its reference. `on_line` gets the builder's lines.

    Raises `ServiceError` with the builder's last lines when it fails.
    """
    reference = recipe.reference
    if not again and find(recipe):
        return reference
    command = [buildkit_command(), "build", "--progress", "plain", "--network", "host", "--tag", reference]
    command += ["--file", str(recipe.file)]
    arguments = recipe.arguments
    if recipe.dockerfile is None:
        command += ["--target", recipe.variant]
        arguments = _our_arguments(recipe, on_line) | arguments
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    _run([*command, str(recipe.project)], on_line)
    return reference


def _our_arguments(recipe: Recipe, on_line: OnLine) -> dict[str, str]:
    base = choose_base(recipe.base, recipe.project / REQUIREMENTS, on_line)
    arguments = {
        "BASE_IMAGE": base.reference,
        "IMAGE_TAG": recipe.tag,
        "VERSION": crucible.__version__,
        "REVISION": _revision(recipe.project),
    }
    if recipe.variant == "cpu" and not base.has_packages and (wheels := import_local_wheels(on_line)):
        arguments |= {"WHEELS_IMAGE": wheels, "TORCH_BACKEND": ""}
    return arguments


def _run(command: list[str], on_line: OnLine) -> None:
    environment = {**os.environ, "DOCKER_BUILDKIT": "1"}
    last: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    ) as building:
        assert building.stdout is not None
        for line in building.stdout:
            on_line(line.rstrip())
            last = [*last[-11:], line.rstrip()]
    if building.returncode:
        raise ServiceError("the image was not built:\n" + "\n".join(last))


def _revision(project: Path) -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or "unknown"
