"""Where local state lives."""

from __future__ import annotations

import os
from pathlib import Path

from crucible.errors import ConfigError

LONGEST_NAME = 255
"""Bytes in one part of a path, on every common file system."""


def crucible_home() -> Path:
    """The folder of local state: `$CRUCIBLE_HOME`, or `~/.crucible`."""
    return Path(os.environ.get("CRUCIBLE_HOME") or "~/.crucible").expanduser().absolute()


def local_path(text: str, field: str) -> Path:
    """The absolute path that a person typed as `field`, `~` and `~user` expanded.

    Raises `ConfigError` for a path that no file system can have: an unknown user, a name too long, a NUL byte.
    """
    if "\0" in text or any(len(os.fsencode(part)) > LONGEST_NAME for part in text.split("/")):
        raise ConfigError(
            f"{field}: {text[:60]!r}… is no path; a name in it has more than {LONGEST_NAME} bytes or a NUL"
        )
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ConfigError(f"{field}: {text!r} names the home of a user who does not exist") from None
