"""The dependencies of a folder of code, installed once for each content and machine.

`uv.lock`, `requirements.txt` or `pyproject.toml`, the first that the folder has, goes into an environment under
`$CRUCIBLE_HOME/cache/environments`. Two attempts that need the same one wait for each other; an environment whose
installation was interrupted is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from crucible.errors import ConfigError
from crucible.parent_death_guard import guarded
from crucible.store.base import local_disk

NONE = "none"
IMAGE_PATH = "CRUCIBLE_SCRIPT_PATH"
"""In an image that is built on a user's own: the PATH with which their script runs."""
LOCK, REQUIREMENTS, PROJECT = "uv.lock", "requirements.txt", "pyproject.toml"
DONE = "crucible-complete"
LAST_LINES = 12
_LOCAL = re.compile(r"^\s*(-r|-e|-c|--|\.|/|file:)|@\s*(file:|\.)|\.whl\b", re.MULTILINE)
"""What in a requirements file names other files of the folder, or a place that is relative to it."""


@dataclass(frozen=True)
class Dependencies:
    """Where the dependencies of a folder are written down."""

    file: str
    """A file of the folder; empty: nowhere, and Crucible's own environment is used."""
    digest: str = ""
    """Of what decides the environment's content."""

    def __str__(self) -> str:
        return self.file or "Crucible's own environment"


def find_dependencies(folder: Path, files: Iterable[str], wanted: str = "") -> Dependencies:
    """What the folder needs. `files`: those of it that travel; `wanted`: a requirements file, `none`, or empty to look
    for one.

    Raises `ConfigError` for a file that is not there or cannot be read.
    """
    if wanted == NONE:
        return Dependencies("")
    if wanted and not (folder / wanted).is_file():
        raise ConfigError(f"dependencies: there is no file {wanted} among the files that travel; write none for none")
    name = wanted or next((name for name in (LOCK, REQUIREMENTS, PROJECT) if _has(folder, name)), "")
    if not name:
        return Dependencies("")
    machine = f"{sys.version_info[:2]} {platform.machine()} {sys.platform}"
    digest = hashlib.sha256(f"{machine}\0{Path(name).name}\0".encode())
    for path in _deciding_files(folder, files, name):
        digest.update(f"\0{path.relative_to(folder)}\0".encode(errors="surrogateescape") + path.read_bytes())
    return Dependencies(name, digest.hexdigest()[:32])


def _has(folder: Path, name: str) -> bool:
    path = folder / name
    if not path.is_file():
        return False
    if name != PROJECT:
        return True
    return bool(_project(path).get("project", {}).get("dependencies"))  # a file that only configures tools is none


def _deciding_files(folder: Path, files: Iterable[str], name: str) -> list[Path]:
    """The file itself; with what it is installed from, if that lies in the folder: any of its `files`."""
    path = folder / name
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.name == LOCK:
        others = [folder / PROJECT] if (folder / PROJECT).is_file() else []
        local = re.search(r"(editable|directory|path) = ", text.replace('editable = "."', ""))
    else:
        others, local = [], _LOCAL.search(text) if path.name != PROJECT else None
    if local:
        return [folder / file for file in sorted(files) if (folder / file).is_file()]
    return [path, *others]


def _project(path: Path) -> dict[str, dict[str, object]]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"dependencies: {path} cannot be read: {error}") from error


def ensure_environment(
    found: Dependencies, folder: Path, cache: Path, report: Callable[[str], None] = lambda _: None
) -> Path | None:
    """The folder of the environment, made if need be; None for Crucible's own.

    Raises `ConfigError` with the installer's last lines when it fails.
    """
    if not found.file:
        return None
    target = cache / found.digest
    if (target / DONE).is_file():
        return target
    with local_disk(cache):
        cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{found.digest}.lock"):
        if (target / DONE).is_file():
            return target
        shutil.rmtree(target, ignore_errors=True)
        report(f"installing {found.file} (once for this content)")
        try:
            for command in _commands(found, target):
                _run(command, folder, target, found.file, report)
        except ConfigError:
            shutil.rmtree(target, ignore_errors=True)
            raise
        with local_disk(target):
            (target / DONE).touch()
    return target


def _commands(found: Dependencies, target: Path) -> Iterator[list[str]]:
    uv = _uv()
    yield [uv, "venv", "--quiet", "--python", sys.executable, str(target)]
    if Path(found.file).name == LOCK:
        yield [uv, "sync", "--frozen", "--no-install-project", "--no-progress"]
    else:
        yield [uv, "pip", "install", "--no-progress", "--python", str(target), "--requirement", found.file]


def _uv() -> str:
    try:
        from uv import find_uv_bin

        return find_uv_bin()
    except (ImportError, FileNotFoundError):
        found = shutil.which("uv")
    if found is None:
        raise ConfigError("dependencies: uv is not installed here, which installs them; run: pip install uv")
    return found


def _run(command: list[str], folder: Path, target: Path, file: str, report: Callable[[str], None]) -> None:
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(target), "VIRTUAL_ENV": str(target)}
    if "CRUCIBLE_IMAGE" in environment:  # a container's home is held in memory
        environment.setdefault("UV_CACHE_DIR", str(target.parent.parent / "uv"))
    environment.pop("PYTHONPATH", None)
    last: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen(
        guarded(command),  # one left behind would go on in the folder that the next attempt installs to
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line.rstrip())
            report(line.rstrip())
    if process.returncode:
        raise ConfigError(f"dependencies: {file} could not be installed:\n" + "\n".join(last))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with local_disk(path):
        file = path.open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def variables(environment: Path | None, cache: Path, inherited: dict[str, str]) -> dict[str, str]:
    """What makes `python` in a command the environment's own, and `import crucible` work in it.

    `cache`: where the folder with nothing but Crucible is kept; `inherited`: the variables of this process.
    """
    path = inherited.get("PATH", os.defpath)
    if environment is None and (script_path := inherited.get(IMAGE_PATH)):
        return {"PATH": script_path, "PYTHONPATH": str(_only_crucible(cache))}
    if environment is None:
        return {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{path}"}
    return {
        "PATH": f"{environment / 'bin'}{os.pathsep}{path}",
        "VIRTUAL_ENV": str(environment),
        "PYTHONPATH": str(_only_crucible(cache)),
    }


def _only_crucible(cache: Path) -> Path:
    """A folder from which `import crucible` works, and nothing else that this installation has."""
    package = Path(__file__).parents[1]
    folder = cache / f"crucible-{hashlib.sha256(str(package).encode()).hexdigest()[:12]}"
    with local_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / "crucible"
        if not link.is_symlink():
            try:
                link.symlink_to(package)
            except FileExistsError:  # another attempt made it meanwhile
                return folder
    return folder
