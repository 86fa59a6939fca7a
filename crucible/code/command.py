"""Whether a command can run in a folder: looked at before anything is packed for it, let alone paid for."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from crucible.code.selection import Selection
from crucible.errors import ConfigError
from crucible.home import LONGEST_NAME

_PYTHON = re.compile(r"python(\d(\.\d+)?)?")
_RUNS_A_FILE = {"bash", "sh", "zsh", "torchrun"}
_USUAL = ("python", "python3", "torchrun", "accelerate", "bash")
_TAKES_A_VALUE = {"-W", "-X", "--check-hash-based-pycs"}
"""Python's own options that are followed by a value."""


def check_command(command: Sequence[str], selection: Selection, installs: bool, here: bool) -> None:
    """Raise `ConfigError` where the command cannot run in a copy of the selected files.

    `installs`: whether dependencies are installed, which may bring programs and modules that are not here yet; `here`:
    whether it runs on this machine, so that its programs count.
    """
    program = command[0]
    if "/" in program and not program.startswith("/"):
        _require_file(program, selection, "command")
    elif _PYTHON.fullmatch(program):
        _check_python(command[1:], selection, installs)
        return
    elif here and not installs and shutil.which(program, path=f"{Path(sys.executable).parent}:{_path()}") is None:
        hint = f"; write ./{program} to run the file of that name" if (selection.folder / program).is_file() else ""
        near = difflib.get_close_matches(program, _USUAL, n=1)
        hint = hint or (f"; did you mean {near[0]}?" if near else "")
        raise ConfigError(f"command: there is no program {program!r} on this machine{hint}")
    if program in _RUNS_A_FILE:
        file = next((word for word in command[1:] if not word.startswith("-")), None)
        if file is not None and file.endswith((".py", ".sh")):
            _require_file(file, selection, "command")


def _path() -> str:
    return os.environ.get("PATH", os.defpath)


def _check_python(arguments: Sequence[str], selection: Selection, installs: bool) -> None:
    words = iter(arguments)
    for word in words:
        if word == "-c":
            return
        if word == "-m":
            _require_module(next(words, ""), selection, installs)
            return
        if word in _TAKES_A_VALUE:
            next(words, None)
        elif not word.startswith("-"):
            _require_file(word, selection, "command")
            return
    raise ConfigError("command: python without a file to run; write python train.py")


def _require_module(module: str, selection: Selection, installs: bool) -> None:
    path = module.replace(".", "/")
    mine = any(name == f"{path}.py" or name.startswith(f"{path}/") for name in selection.files)
    if not mine and not installs and importlib.util.find_spec(module.partition(".")[0]) is None:
        raise ConfigError(f"command: there is no module {module!r} in {selection.folder}, and none is installed")


def _require_file(name: str, selection: Selection, field: str) -> None:
    plain = PurePosixPath(name).as_posix()
    if PurePosixPath(name).is_absolute():
        raise ConfigError(f"{field}: {name} is not in {selection.folder}; give a path relative to it")
    if plain in selection.files or selection.missing_under(plain):  # what stays behind is asked about by itself
        return
    if selection.by_choice.match_file(plain):
        raise ConfigError(f"{field}: {name} stays behind, because .crucibleignore names it")
    near = difflib.get_close_matches(PurePosixPath(name).name, [PurePosixPath(f).name for f in selection.files], n=1)
    found = [file for file in selection.files if near and PurePosixPath(file).name == near[0]]
    raise ConfigError(
        f"{field}: there is no file {name} in {selection.folder}{f'; did you mean {found[0]}?' if found else ''}"
    )


def named_but_left_out(command: Sequence[str], outputs: Iterable[str], selection: Selection) -> dict[str, list[str]]:
    """What the command names and git leaves behind: the named path → the files of it that would be missing.

    `outputs`: paths that the script writes, which nobody needs to bring.
    """
    written = [PurePosixPath(path) for path in outputs]
    found: dict[str, list[str]] = {}
    for word in command[1:]:
        text = word.rpartition("=")[2].removeprefix("./").rstrip("/")
        path = PurePosixPath(text)
        if not text or text == "." or path.is_absolute() or ".." in path.parts or not _may_exist(path):
            continue
        if any(path == out or path in out.parents or out in path.parents for out in written):
            continue
        if (selection.folder / path).exists() and (missing := selection.missing_under(text)):
            found[text] = missing
    return found


def _may_exist(path: PurePosixPath) -> bool:
    """Whether a file system could have it: an argument may as well be a long text."""
    return all(len(os.fsencode(part)) <= LONGEST_NAME for part in path.parts) and len(os.fsencode(path)) < 1024
