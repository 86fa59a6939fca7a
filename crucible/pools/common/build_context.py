"""The files that an image is built from, alone in a folder: nobody who looks for them walks the whole checkout."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from crucible.errors import ConfigError

IGNORE_FILE = ".dockerignore"


def sent_files(project: Path) -> Iterator[Path]:
    """The files that the project's `.dockerignore` lets through, relative to it, sorted.

    The file has to exclude everything (`*`) and name what is sent (`!folder`), and may exclude caches and hidden files.
    Raises `ConfigError` if it is of another kind.
    """
    lines = [line.strip() for line in (project / IGNORE_FILE).read_text(encoding="utf-8").splitlines()]
    rules = [line for line in lines if line and not line.startswith("#")]
    if not rules or rules[0] != "*":
        raise ConfigError(f"{project / IGNORE_FILE}: its first rule has to be *, and then name what is sent with !")
    for name in sorted(rule[1:] for rule in rules if rule.startswith("!")):
        root = project / name
        found = sorted(root.rglob("*")) if root.is_dir() else [root]
        for path in found:
            relative = path.relative_to(project)
            hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
            if path.is_file() and not hidden and path.suffix not in (".pyc", ".pyo", ".pyd"):
                yield relative


def staged_context(project: Path, cache: Path) -> Path:
    """A folder below `cache` with the files that are sent, made once for the same content."""
    files = [Path(IGNORE_FILE), *sent_files(project)]
    digest = hashlib.sha256()
    for name in files:
        digest.update(f"\0{name}\0".encode() + (project / name).read_bytes())
    folder = cache / digest.hexdigest()[:12]
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as made:
            partial = Path(made, "context")
            for name in files:
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(project / name, partial / name)
            try:
                partial.rename(folder)
            except OSError:  # another worker was faster
                if not folder.is_dir():
                    raise
    return folder
