"""Which files of a folder travel.

With git: what it tracks, and what it does not ignore. Without: everything but caches and virtual environments. In both
cases `.crucibleignore` takes away and `include` adds. What cannot travel is refused by name, before anything starts.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pathspec import GitIgnoreSpec

from crucible.errors import ConfigError
from crucible.formatting import counted, size

IGNORE_FILE = ".crucibleignore"
MOST_BYTES = 100_000_000
"""Of code; anything larger is data, and is named as such."""
_NEVER = (".git", "__pycache__", ".venv", "venv", "node_modules", ".ipynb_checkpoints", ".pytest_cache", ".mypy_cache")
"""Folders that stay behind where there is no git to say so."""
_DOTENV = re.compile(r"\.env(\..+)?")
_DOTENV_EXAMPLE = re.compile(r"\.env\.(example|sample|template|dist)")
_PRIVATE_KEY = re.compile(rb"-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY( BLOCK)?-----")
_SECRET_NAMES = {".netrc", ".pypirc", ".git-credentials"}
_SHOWN = 5


@dataclass
class Selection:
    """The files of `folder` that travel, by their paths in it, sorted."""

    folder: Path
    files: list[str]
    left_out: list[str] = field(default_factory=list)
    """What git or `.crucibleignore` leaves behind; a path with a slash at its end is a whole folder."""
    by_choice: GitIgnoreSpec = field(default_factory=lambda: GitIgnoreSpec.from_lines([]))
    """What `.crucibleignore` names: left behind without a question."""

    @property
    def bytes(self) -> int:
        return sum((self.folder / name).lstat().st_size for name in self.files)

    def missing_under(self, path: str) -> list[str]:
        """The files at or below `path` (relative to the folder) that are there and do not travel by accident."""
        wanted = PurePosixPath(path)
        found = []
        for name in self.left_out:
            if self.by_choice.match_file(name):
                continue
            own = PurePosixPath(name)
            if own == wanted or wanted in own.parents or (name.endswith("/") and own in wanted.parents):
                found.append(name if own == wanted or wanted in own.parents else path)
        return found

    def describe_left_out(self) -> str:
        """What stays behind, the first few by name."""
        shown = [name for name in self.left_out if PurePosixPath(name).name not in _NEVER]
        if not shown:
            return ""
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        return ", ".join(shown[:_SHOWN]) + more


def select(folder: Path, include: Sequence[str] = (), data: Sequence[str] = ()) -> Selection:
    """The files of `folder` that travel as code; what `data` names is carried apart from it.

    Raises `ConfigError` naming the files that must not or cannot travel: secrets, links out of the folder, submodules
    that are not there, special files, an `include` that matches nothing, more than `MOST_BYTES` in all.
    """
    folder = folder.resolve()
    if not folder.is_dir():
        raise ConfigError(f"code: {folder} is not a folder")
    chosen = _read_ignore_file(folder / IGNORE_FILE)
    tracked, left_out = _with_git(folder, chosen) if _is_in_git(folder) else _without_git(folder)
    found = {name for name in tracked if not chosen.match_file(name)}
    left_out += sorted(tracked - found)
    for pattern in include:
        found |= _included(folder, pattern)
    carried = {PurePosixPath(path) for path in data}
    found = {name for name in found if not carried & {PurePosixPath(name), *PurePosixPath(name).parents}}
    left_out = [name for name in left_out if name not in found and not _covered(name, carried)]
    selection = Selection(folder, sorted(found), left_out, chosen)
    _refuse_links_and_special_files(selection)
    _refuse_secrets(selection)
    _refuse_too_much(selection)
    return selection


def _covered(name: str, carried: set[PurePosixPath]) -> bool:
    path = PurePosixPath(name)
    return bool(carried & {path, *path.parents})


def _read_ignore_file(path: Path) -> GitIgnoreSpec:
    try:
        return GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8-sig").splitlines())
    except FileNotFoundError:
        return GitIgnoreSpec.from_lines([])
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


# With git


def _is_in_git(folder: Path) -> bool:
    if shutil.which("git") is None:
        return False
    done = _git(folder, "rev-parse", "--is-inside-work-tree", check=False)
    # A folder that the repository around it ignores as a whole is not one of its folders.
    return done == b"true\n" and not _git(folder, "check-ignore", "-q", ".", check=False, code=True)


def _with_git(folder: Path, chosen: GitIgnoreSpec, prefix: str = "") -> tuple[set[str], list[str]]:
    """The files that git tracks or does not ignore, and what it ignores; submodules and nested clones included."""
    files: set[str] = set()
    nested = _submodules(folder, chosen, prefix)
    for name in _git_names(folder, "--cached", "--others", "--exclude-standard"):
        if name.rstrip("/") in nested:
            continue
        if name.endswith("/"):  # a clone inside this one, which git lists but does not look into
            nested.append(name.rstrip("/"))
        elif os.path.lexists(folder / name):  # tracked, but deleted here
            files.add(prefix + name)
    ignored = _git_names(folder, "--others", "--ignored", "--exclude-standard", "--directory")
    # A folder of which everything is ignored is listed beside its files; the files say more.
    left_out = [prefix + name for name in ignored if not any(o != name and o.startswith(name) for o in ignored)]
    for name in nested:
        if not (folder / name / ".git").exists():  # not checked out, and left out by choice
            continue
        inner, inner_left_out = _with_git(folder / name, chosen, f"{prefix}{name}/")
        files |= inner
        left_out += inner_left_out
    return files, left_out


def _submodules(folder: Path, chosen: GitIgnoreSpec, prefix: str) -> list[str]:
    found = []
    for line in _git(folder, "ls-files", "--stage", "-z").split(b"\0"):
        if not line.startswith(b"160000 "):
            continue
        name = os.fsdecode(line.split(b"\t", 1)[1])
        if not (folder / name / ".git").exists() and not chosen.match_file(f"{prefix}{name}/"):
            raise ConfigError(
                f"code: the submodule {prefix}{name} is not checked out; run: git submodule update --init {name}, or "
                f"name it in {IGNORE_FILE}"
            )
        found.append(name)
    return found


def _git_names(folder: Path, *options: str) -> list[str]:
    return [os.fsdecode(name) for name in _git(folder, "ls-files", "-z", *options).split(b"\0") if name]


def _git(folder: Path, *arguments: str, check: bool = True, code: bool = False) -> bytes:
    """What git prints; b"" for a failure that is not checked. With `code`: b"0" where git exits with 0."""
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False)
    if code:
        return b"0" if done.returncode == 0 else b""
    if done.returncode and check:
        raise ConfigError(f"code: git ls-files failed in {folder}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout if done.returncode == 0 else b""


# Without git


def _without_git(folder: Path) -> tuple[set[str], list[str]]:
    ignored = _read_ignore_file(folder / ".gitignore")
    files: set[str] = set()
    left_out: list[str] = []
    for parent, folders, names in os.walk(folder):
        base = Path(parent).relative_to(folder)
        for name in list(folders):
            inner = (base / name).as_posix()
            if _stays_behind(Path(parent) / name) or ignored.match_file(f"{inner}/"):
                folders.remove(name)
                left_out.append(f"{inner}/")
            elif (Path(parent) / name).is_symlink():  # a link, not a folder: os.walk does not follow it
                folders.remove(name)
                names.append(name)
        for name in names:
            path = (base / name).as_posix()
            if ignored.match_file(path):
                left_out.append(path)
            else:
                files.add(path)
    return files, left_out


def _stays_behind(folder: Path) -> bool:
    return folder.name in _NEVER or (folder / "pyvenv.cfg").is_file()


# Includes and refusals


def _included(folder: Path, pattern: str) -> set[str]:
    found: set[str] = set()
    try:
        itself = "[" in pattern and not pattern.startswith("/") and os.path.lexists(folder / pattern)
        paths = [folder / pattern] if itself else list(folder.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"include: {pattern!r} is no pattern of paths in the folder: {error}") from None
    for path in paths:
        inside = _files_below(path) if path.is_dir() and not path.is_symlink() else [path]
        found |= {file.relative_to(folder).as_posix() for file in inside}
    if not found:
        raise ConfigError(f"include: {pattern!r} matches nothing in {folder}")
    return found


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _stays_behind(Path(parent) / name)]
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        yield from (Path(parent) / name for name in [*names, *links])


def _refuse_links_and_special_files(selection: Selection) -> None:
    outside, special = [], []
    for name in selection.files:
        path = selection.folder / name
        if path.is_symlink():
            target = Path(os.path.realpath(path))
            if path.readlink().is_absolute() or not target.is_relative_to(selection.folder):
                outside.append(f"{name} → {path.readlink()}")
        elif not path.is_file():
            special.append(name)
    if outside:
        raise ConfigError(
            f"code: {_list(outside)} {_links_leave(outside)} the folder {selection.folder}; name it in data: to carry "
            f"what it points to, or in {IGNORE_FILE} to leave it out"
        )
    if special:
        raise ConfigError(f"code: {_list(special)} is neither a file nor a folder; name it in {IGNORE_FILE}")


def _links_leave(links: Sequence[str]) -> str:
    return "is a link that leaves" if len(links) == 1 else "are links that leave"


def _refuse_secrets(selection: Selection) -> None:
    found = [name for name in selection.files if _is_secret(selection.folder / name)]
    if found:
        raise ConfigError(
            f"code: {_list(found)} may hold secrets and would be stored with the code; name it in .gitignore or "
            f"{IGNORE_FILE}, and pass what the script needs with --secret NAME"
        )


def _is_secret(path: Path) -> bool:
    name = path.name
    if name in _SECRET_NAMES or (_DOTENV.fullmatch(name) and not _DOTENV_EXAMPLE.fullmatch(name)):
        return True
    if path.is_symlink() or path.suffix == ".py":
        return False
    try:
        with path.open("rb") as file:
            return path.stat().st_size <= 1 << 20 and _PRIVATE_KEY.match(file.read(200).lstrip()) is not None
    except OSError:
        return False  # whoever packs it says that it cannot be read


def _refuse_too_much(selection: Selection) -> None:
    total = selection.bytes
    if total <= MOST_BYTES:
        return
    sizes = sorted(((selection.folder / name).lstat().st_size, name) for name in selection.files)[::-1]
    largest = [f"{name} ({size(count)})" for count, name in sizes[:_SHOWN]]
    raise ConfigError(
        f"code: {counted(len(sizes), 'file')} with {size(total)} in {selection.folder}, and {size(MOST_BYTES)} of code "
        f"are allowed; the largest: {', '.join(largest)}. Name what the script reads in data:, and the rest in "
        f"{IGNORE_FILE}"
    )


def _list(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
