"""What decides an image's digest, and what reaches the builder. Needs no engine."""

from __future__ import annotations

import re
import shutil
import string
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from crucible.errors import ConfigError
from crucible.pools.docker.bases import PUBLIC_BASE
from crucible.pools.docker.host_base import locked
from crucible.pools.docker.images import PROJECT, REQUIREMENTS, Recipe, context_files, variant_for


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of what an image is made of, and some that it is not."""
    for name, path in context_files(PROJECT):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / name)
    for name in (".dockerignore", "images/Dockerfile"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(PROJECT / name, tmp_path / name)
    return tmp_path


def test_an_untouched_copy_has_the_same_digest(project: Path) -> None:
    assert Recipe(project=project).digest == Recipe().digest


@pytest.mark.parametrize(
    "name", ["crucible/jobs/job.py", "flows/train.py", "images/Dockerfile", "images/requirements.txt"]
)
def test_what_is_in_the_image_changes_the_digest(project: Path, name: str) -> None:
    before = Recipe(project=project).digest
    with (project / name).open("a") as file:
        file.write("\n# changed\n")
    assert Recipe(project=project).digest != before


@pytest.mark.parametrize(
    "name", [".env", "crucible/.env", "README.md", "tests/test_x.py", "crucible/__pycache__/x.pyc", ".git/config"]
)
def test_what_is_not_in_the_image_does_not_reach_the_builder(project: Path, name: str) -> None:
    before = Recipe(project=project).digest
    (project / name).parent.mkdir(parents=True, exist_ok=True)
    (project / name).write_text("TOKEN=secret")
    assert name not in dict(context_files(project))
    assert Recipe(project=project).digest == before


def test_variant_base_and_arguments_change_the_digest() -> None:
    recipes = [Recipe(), Recipe("gpu"), Recipe(base="other"), Recipe(arguments={"A": "b"})]
    assert len({recipe.digest for recipe in recipes}) == len(recipes)


def test_a_missing_dockerfile_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path / "Dockerfile")):
        _ = Recipe(dockerfile=tmp_path / "Dockerfile").digest


@pytest.mark.parametrize(
    ("gpus", "variant"), [("0", "cpu"), (0, "cpu"), ("", "cpu"), ("all", "gpu"), ("device=0", "gpu")]
)
def test_the_image_follows_the_gpus(gpus: object, variant: str) -> None:
    assert variant_for(gpus) == variant


def test_the_lock_agrees_with_the_constraints() -> None:
    """A pin that stands in constraints.txt for a reason must not be another one in the images."""
    packages = dict(locked(PROJECT / REQUIREMENTS))
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (PROJECT / "constraints.txt").read_text(), re.MULTILINE))
    assert {n: packages[n] for n in pins if n in packages} == {n: v for n, v in pins.items() if n in packages}
    assert {"torch", "prefect", "s3fs", "numpy"} <= pins.keys() & packages.keys()


@pytest.mark.parametrize("name", ["images/Dockerfile", "compose.yaml"])
def test_every_public_image_is_named_by_its_digest(name: str) -> None:
    text = (PROJECT / name).read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", text, re.MULTILINE))
    stages = re.findall(r"^FROM \S+ AS (\S+)", text, re.MULTILINE)
    named = re.findall(r"^FROM (\S+)|^\s+image: \$\{\w+(?::-|:\?)([^}]+)\}", text, re.MULTILINE)
    images = {string.Template(a or b).safe_substitute(arguments) for a, b in named}
    public = {image for image in images if image not in (*stages, "scratch") and " " not in image}
    assert public
    assert all(re.fullmatch(r"\S+:\S+@sha256:[0-9a-f]{64}", image) for image in public), public
    assert name == "compose.yaml" or public == {PUBLIC_BASE}


def test_every_module_that_the_compose_file_runs_is_there() -> None:
    """Bringing it up takes an engine with the Compose plugin, which most test machines lack."""
    modules = set(re.findall(r"-m,? ([\w.]+)", (PROJECT / "compose.yaml").read_text()))
    assert {"crucible.local.server", "blocks.deploy"} <= modules
    for module in modules:
        found = find_spec(module)
        assert found is not None, module
        assert found.submodule_search_locations is None or find_spec(f"{module}.__main__"), module


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-gpu.txt", "requirements-uv.txt"])
def test_every_package_has_the_sums_of_its_files(name: str) -> None:
    entries = re.split(r"\n(?=[^\s#])", (PROJECT / "images" / name).read_text())[1:]
    without = {entry.split("==")[0] for entry in entries if not re.search(r"--hash=sha256:[0-9a-f]{64}", entry)}
    assert entries
    # PyTorch's own index, where its CPU builds are, has files with sums of their own.
    assert without == ({"torch"} if name == "requirements.txt" else set())


def test_the_dockerfile_passes_hadolint() -> None:
    command = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([command, PROJECT / "images" / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
