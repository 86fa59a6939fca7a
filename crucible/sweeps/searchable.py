"""Which settings a space may name, and which values each of them takes: those of our trainer, or of a script.

A script has no settings of its own here: a name of the space stands as `{name}` in its command, or in one of its
environment variables, and a trial's value takes that place.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Protocol

from pydantic import TypeAdapter, ValidationError

from crucible.config import NOT_IN_DIGEST, TrainConfig
from crucible.errors import ConfigError
from crucible.script_config import ScriptConfig
from crucible.settings import shown

Value = bool | int | float | str | None
Values = dict[str, Value]
"""What one trial changes: setting → value. Settings whose `when` does not hold are absent."""

COLUMNS = ("rank", "trial", "step", "state", "cost_usd", "seconds", "attempts", "failure", "job")
"""Of every leaderboard, beside what is searched and the metric that decides."""
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_.-]*)\}")


class Searchable(Protocol):
    """The settings that may be searched."""

    def require(self, name: str) -> None:
        """Raises `ConfigError` unless a setting of that name can be searched."""

    def checked(self, name: str, value: Any) -> Value:
        """The value as the setting takes it. Raises `ConfigError` naming both."""

    def is_whole(self, name: str) -> bool | None:
        """Whether the setting takes whole numbers only; None where it takes any."""


class ConfigSettings:
    """The settings of `TrainConfig`."""

    def require(self, name: str) -> None:
        if name not in TrainConfig.model_fields:
            near = difflib.get_close_matches(name, TrainConfig.model_fields, n=1)
            fix = f"did you mean {near[0]}?" if near else f"known settings: {', '.join(TrainConfig.model_fields)}"
            raise ConfigError(f"space: {name!r} is not a known setting; {fix}")
        if name in NOT_IN_DIGEST:
            raise ConfigError(
                f"space: {name!r} does not change what is learned, so there is nothing to search; remove it"
            )
        if name == "max_iters":
            raise ConfigError(
                "space: 'max_iters' is the budget that every trial is given, so that their losses can be compared; put "
                "it into config, and let the schedule stop bad trials early"
            )

    def checked(self, name: str, value: Any) -> Value:
        """Judged by that setting alone: "1e-3" becomes a number."""
        setting = TrainConfig.model_fields[name]
        kind: Any = Annotated[(setting.annotation, *setting.metadata)] if setting.metadata else setting.annotation
        try:
            checked: Value = TypeAdapter(kind).validate_python(value)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"].removeprefix("Input ")
            fix = reason.replace("should be", "it must be", 1)
            raise ConfigError(f"space: {name} = {value!r} is not valid; {fix}") from None
        return checked

    def is_whole(self, name: str) -> bool | None:
        annotation = TrainConfig.model_fields[name].annotation
        kinds = getattr(annotation, "__args__", (annotation,))
        return int in kinds and float not in kinds


class ScriptPlaceholders:
    """The `{name}` in a script's command and in the values of its environment variables."""

    def __init__(self, script: ScriptConfig) -> None:
        self._script = script

    def require(self, name: str) -> None:
        if name in COLUMNS:
            raise ConfigError(f"space: {name!r} is a column of the leaderboard; choose another name in the braces")
        there = placeholders(self._script)
        if name in there:
            return
        near = difflib.get_close_matches(name, there, n=1)
        fix = f"did you mean {near[0]}?" if near else f"write {{{name}}} where its value goes"
        example = f"command: python train.py --{name}={{{name}}}, or env: {{{name.upper()}: '{{{name}}}'}}"
        raise ConfigError(f"space: {name!r} stands nowhere in the command or in env; {fix}, such as {example}")

    def checked(self, name: str, value: Any) -> Value:
        if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
            raise ConfigError(f"space: {name} = {shown(value)} is not valid; it must be a number, a text or a boolean")
        return value

    def is_whole(self, name: str) -> bool | None:
        return None


def placeholders(script: ScriptConfig) -> list[str]:
    """The names in braces in the script's command and environment, each once."""
    texts = [*script.command, *script.env.values()]
    return list(dict.fromkeys(name for text in texts for name in _PLACEHOLDER.findall(text)))


def filled(script: ScriptConfig, names: Collection[str], values: Mapping[str, Value]) -> ScriptConfig:
    """The script with the values in place of the `names` in braces; other braces stay as they are.

    An argument, or a variable, with a name that has no value (its `when` does not hold) is left out.
    """

    def fill(text: str) -> str | None:
        there = [name for name in _PLACEHOLDER.findall(text) if name in names]
        if any(name not in values for name in there):
            return None
        return _PLACEHOLDER.sub(lambda found: as_text(values[found[1]]) if found[1] in there else found[0], text)

    command = [word for given in script.command if (word := fill(given)) is not None]
    env = {name: value for name, given in script.env.items() if (value := fill(given)) is not None}
    changed = {"command": command, "env": env, "settings": {**script.settings, **values}}
    return ScriptConfig.parse({**script.model_dump(exclude_unset=True), **changed})


def as_text(value: Value) -> str:
    """A value as a command line has it: `true` and `false` as YAML writes them, numbers in full."""
    return str(value).lower() if isinstance(value, bool) else str(value)
