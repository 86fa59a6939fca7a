"""Which job variables a work pool offers: those that a run may set. All others keep the pool's own values."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from crucible.errors import ConfigError

_SETTINGS = "crucible-settings"


def offer_only(
    template: Mapping[str, Any], names: Collection[str], settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The base job template with these job variables alone.

    Whoever reaches the Prefect API may start a flow run with job variables. Which command runs on the pool, with which
    environment, volumes and credentials, is therefore the pool's business: the defaults of all other variables become
    fixed parts of the job configuration, and the server refuses a run or deployment that sets one of them.

    `settings` replace those defaults, by the variables' names. They are kept in the template (`settings_of`).
    Raises `ConfigError` if the worker has no variable of a name.
    """
    from prefect.utilities.templating import apply_values

    settings = {name: value for name, value in (settings or {}).items() if value not in ("", None)}
    variables = template["variables"]
    properties: dict[str, Any] = variables["properties"]
    if unknown := sorted(settings.keys() - properties.keys()):
        raise ConfigError(f"{', '.join(unknown)}: the worker has no such setting; it has {', '.join(properties)}")
    for name, value in settings.items():
        default = properties[name].get("default")
        properties[name]["default"] = {**default, **value} if isinstance(default, dict) else value
    offered = {name: given for name, given in properties.items() if name in names}
    # As Prefect's workers do: a default of None leaves its place out.
    defaults = {name: given.get("default") for name, given in properties.items()}
    fixed = {name: value for name, value in defaults.items() if name not in offered and value is not None}
    kept = {name: "{{ " + name + " }}" for name in offered}
    return {
        **template,
        "job_configuration": apply_values(template["job_configuration"], fixed | kept),
        "variables": {
            **variables,
            "properties": offered,
            "required": [name for name in variables.get("required", []) if name in offered],
            "additionalProperties": False,
            _SETTINGS: settings,
        },
    }


def with_environment(settings: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Settings with these environment variables added to those that they have."""
    known = settings.get("env") or {}
    return {**settings, "env": {**known, **environment}} if environment or known else dict(settings)


def settings_of(template: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a pool was given when it was made; none for pools of earlier versions."""
    return dict(template.get("variables", {}).get(_SETTINGS) or {})


def parse_settings(typed: Mapping[str, str]) -> dict[str, Any]:
    """Settings as typed on a command line: JSON is read as such, and an empty text takes a setting back."""
    settings: dict[str, Any] = {}
    for name, value in typed.items():
        try:
            settings[name] = json.loads(value) if value else ""
        except (ValueError, RecursionError):
            settings[name] = value
    return settings


def require_offered(template: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Refuse what the pool does not offer, as the server does; Prefect's workers take `env` in any case.

    Raises:
        ConfigError: names the variables.
    """
    variables = template["variables"]
    if variables.get("additionalProperties", True):
        return
    if unknown := sorted({name.partition(".")[0] for name in given} - variables["properties"].keys()):
        raise ConfigError(
            f"job variable {', '.join(unknown)}: the pool does not offer it; it offers "
            f"{', '.join(sorted(variables['properties']))}"
        )
