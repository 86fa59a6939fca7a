"""The Prefect profile `crucible`, with which plain `prefect …` commands reach the local server."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import toml  # what Prefect itself writes the file with

from crucible.errors import ServiceError

NAME = "crucible"
PREFECT_DEFAULT = "ephemeral"
"""The profile that Prefect uses if none was ever selected."""


def profiles_path() -> Path:
    """The user's own profiles file, found as Prefect finds it."""
    if named := os.environ.get("PREFECT_PROFILES_PATH"):
        return Path(named).expanduser()
    return Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser() / "profiles.toml"


def active() -> str:
    """The name of the profile that is selected for new shells."""
    return str(_read().get("active") or PREFECT_DEFAULT)


def setting(name: str) -> str | None:
    """A setting of the profile `crucible`; None if it has none of that name."""
    value = _read().get("profiles", {}).get(NAME, {}).get(name)
    return None if value is None else str(value)


def select(settings: Mapping[str, str]) -> str | None:
    """Write the profile with `settings` and make it the active one; return the name of the one active before.

    Settings that the user added to the profile stay. Returns None if ours was active already.
    """
    content = _read()
    previous = active()
    profiles = content.setdefault("profiles", {})
    profiles[NAME] = {**profiles.get(NAME, {}), **settings}
    content["active"] = NAME
    _write(content)
    return None if previous == NAME else previous


def restore(previous: str | None) -> str | None:
    """Make `previous` active again and return its name; None, with nothing changed, if the user chose another since."""
    content = _read()
    if content.get("active") != NAME:
        return None
    content["active"] = previous or PREFECT_DEFAULT
    _write(content)
    return str(content["active"])


def overridden_by(settings: Mapping[str, str]) -> list[str]:
    """The variables of this shell that win over the profile and send `prefect` elsewhere."""
    overriding = [name for name, value in settings.items() if os.environ.get(name, value) != value]
    return overriding + [name for name in ("PREFECT_PROFILE",) if os.environ.get(name, NAME) != NAME]


def _read() -> dict[str, Any]:
    path = profiles_path()
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        raise ServiceError(f"Prefect's profiles in {path} are not valid TOML ({error}); fix or delete it") from error


def _write(content: Mapping[str, Any]) -> None:
    path = profiles_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_suffix(".partial")
    staged.touch(mode=0o600)  # profiles may hold keys
    staged.write_text(toml.dumps(content), encoding="utf-8")
    staged.replace(path)
