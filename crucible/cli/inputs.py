"""What every command refuses before it runs: numbers that are none, and text that cannot be a name or a path.

Typer converts `nan`, `inf` and integers of any length without a word. `CheckedCommand` is the class of every command.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from crucible.errors import ConfigError
from crucible.home import LONGEST_NAME

LARGEST = 2**53
"""The largest number that JSON keeps exactly everywhere."""
LONGEST_TEXT = 4096


class CheckedCommand(TyperCommand):
    """A command whose values are checked once they are parsed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            given = ctx.params.get(parameter.name)
            for value in given if isinstance(given, list | tuple) else [given]:
                if (problem := problem_with(value)) is not None:
                    raise typer.BadParameter(problem, ctx=ctx, param=parameter)
        return rest


def problem_with(value: Any) -> str | None:
    """Why no command can use this value; None for every other one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        if not math.isfinite(value):
            return f"{value} is not a number"
        return f"{value:.6g} is too large" if abs(value) > LARGEST else None
    if isinstance(value, str | Path):
        text = str(value)
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            return f"{text[:40]!r} is not text"
        if len(text) > LONGEST_TEXT:
            return f"{text[:40]!r}… has {len(text):,} characters; {LONGEST_TEXT:,} are allowed"
        if isinstance(value, Path) and any(len(os.fsencode(part)) > LONGEST_NAME for part in value.parts):
            return f"{text[:40]!r}… is too long for the name of a file"
    return None


def named_values(option: str, pairs: list[str] | None) -> dict[str, str]:
    """The values of a repeated `NAME=value` option. Raises `ConfigError` for one without an equals sign."""
    values = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{option} {pair!r}: write NAME=value")
        values[name] = value
    return values


def check_all(app: typer.Typer) -> None:
    """Make every command of the app, and of its groups, a `CheckedCommand`."""
    for command in app.registered_commands:
        command.cls = CheckedCommand
    for group in app.registered_groups:
        if group.typer_instance is not None:
            check_all(group.typer_instance)
