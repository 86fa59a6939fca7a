"""What a sweep may change: a search space in nanoGPT's key names.

    learning_rate: {loguniform: [3e-4, 3e-3]}      a float, every factor as likely as any other
    dropout:       {uniform: [0.0, 0.3]}           a float
    n_layer:       {int: [2, 6]}                   a whole number, both ends included
    n_embd:        [64, 128, 256]                  one of these; a grid has every combination of such lists
    warmup_iters:  {choice: [50, 100], when: {decay_lr: true}}
    decay_lr:      [true, false]

`when` makes a setting part of the search only where another one has that value (or one of a list of values);
elsewhere it keeps the value of the base configuration.

Everything that can be wrong is found before the first trial: `Space.parse` judges each setting,
`Space.require_valid_trials` the combinations.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from crucible.errors import ConfigError
from crucible.settings import MOST, shown
from crucible.sweeps.searchable import ConfigSettings, Searchable, Value, Values
from crucible.tune_config import EXAMPLE, MOST_TRIALS

MOST_CORNERS = 4_096
"""Combinations of lowest, highest and listed values that are judged before a sweep that does not list them all."""
_LARGEST = 1e300
"""Of an end of a range, whose width must be a float, too."""
KINDS = ("choice", "uniform", "loguniform", "int")


@dataclass(frozen=True)
class Dimension:
    """One setting of the space: `values` for a choice, `low` and `high` (both included) for a range."""

    name: str
    kind: Literal["choice", "uniform", "loguniform", "int"]
    values: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)

    def active(self, values: Values) -> bool:
        """Whether the setting is searched, given those before it."""
        return all(_among(values[name], wanted) if name in values else False for name, wanted in self.when.items())

    @property
    def ends(self) -> tuple[Value, ...]:
        """All values of a choice; lowest and highest of a range."""
        if self.kind == "choice":
            return self.values
        ends = (self.low, self.high) if self.low != self.high else (self.low,)
        return tuple(int(end) for end in ends) if self.kind == "int" else ends

    def as_json(self) -> dict[str, Any]:
        """As it may be written in a space file."""
        range_ = [int(self.low), int(self.high)] if self.kind == "int" else [self.low, self.high]
        written: dict[str, Any] = {self.kind: list(self.values) if self.kind == "choice" else range_}
        return written | ({"when": {name: list(wanted) for name, wanted in self.when.items()}} if self.when else {})


@dataclass(frozen=True)
class Space:
    """A checked search space. Its `dimensions` are ordered by name, but what a `when` asks for comes first."""

    dimensions: tuple[Dimension, ...]

    @classmethod
    def parse(cls, given: Mapping[str, Any] | str, settings: Searchable | None = None) -> Space:
        """Read a space over `settings` (by default the trainer's) from a mapping, or from YAML or JSON text.

        Raises `ConfigError` naming setting, value and fix.
        """
        known = settings or ConfigSettings()
        written = _mapping(given)
        if not written:
            raise ConfigError(f"space is empty; name at least one setting to search, such as {EXAMPLE}")
        parsed = {name: _dimension(str(name), entry, known) for name, entry in written.items()}
        for dimension in parsed.values():
            _require_conditions(dimension, parsed)
        return cls(tuple(_conditions_first(parsed)))

    @classmethod
    def from_file(cls, path: str | Path, settings: Searchable | None = None) -> Space:
        """Read a YAML or JSON file, with the same errors."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: no UTF-8 text, or characters that no path can have
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ConfigError(f"space_file {shown(str(path))} cannot be read: {reason}") from None
        return cls.parse(text, settings)

    @property
    def names(self) -> list[str]:
        return [dimension.name for dimension in self.dimensions]

    def as_json(self) -> dict[str, Any]:
        """The space as records keep it: equal spaces give equal JSON, however they were written."""
        return {dimension.name: dimension.as_json() for dimension in self.dimensions}

    def grid(self) -> list[Values]:
        """Every combination; the last dimension changes fastest.

        Raises `ConfigError` for a range of floats, and for more than `MOST_TRIALS` combinations.
        """
        for dimension in self.dimensions:
            if dimension.kind in ("uniform", "loguniform"):
                raise ConfigError(
                    f"space: {dimension.name} = {json.dumps(dimension.as_json())} has no end of values, so there is no "
                    f"grid of it; list the values, or use sampler = random or tpe"
                )
        points = list(itertools.islice(self._combinations(every=True), MOST_TRIALS + 1))
        if len(points) > MOST_TRIALS:
            raise ConfigError(
                f"space: the grid has more than {MOST_TRIALS:,} points; list fewer values, or use sampler = random"
            )
        return points

    def corners(self) -> list[Values]:
        """Every combination of listed values and ends of ranges; the first `MOST_CORNERS` of them."""
        return list(itertools.islice(self._combinations(every=False), MOST_CORNERS))

    def require_valid_trials(self, check: Callable[[Values], object], sampler: str) -> None:
        """Judge the combinations by `check`, which raises `ConfigError`: all of a grid, the corners of anything else.

        Raises `ConfigError` with the first one that is no valid configuration.
        """
        for values in self.grid() if sampler == "grid" else self.corners():
            try:
                check(values)
            except ConfigError as error:
                raise ConfigError(
                    f"space: {as_text(values)} is no valid configuration: {error}; change the space, or tie the "
                    f"settings together with `when`"
                ) from None

    def _combinations(self, every: bool) -> Iterator[Values]:
        def extend(values: Values, rest: Sequence[Dimension]) -> Iterator[Values]:
            if not rest:
                yield values
                return
            dimension, *others = rest
            if not dimension.active(values):
                yield from extend(values, others)
                return
            for value in _all_values(dimension) if every else dimension.ends:
                yield from extend({**values, dimension.name: value}, others)

        return extend({}, self.dimensions)


def as_text(values: Mapping[str, Value]) -> str:
    """`learning_rate = 0.001, n_embd = 64`, for messages."""
    return ", ".join(f"{name} = {json.dumps(value)}" for name, value in values.items())


def _mapping(given: Mapping[str, Any] | str) -> Mapping[str, Any]:
    if not isinstance(given, str):
        return given
    try:
        written = yaml.safe_load(given)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a 30th of February
        raise ConfigError(f"space is not valid YAML or JSON: {' '.join(str(error).split())}") from None
    if written is None:
        return {}
    if not isinstance(written, dict):
        raise ConfigError(f"space must be `setting: values` lines, not {given.strip()[:40]!r}; such as {EXAMPLE}")
    return written


def _dimension(name: str, entry: Any, settings: Searchable) -> Dimension:
    settings.require(name)
    if isinstance(entry, list | tuple):
        entry = {"choice": list(entry)}
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"space: {name} = {entry!r} is a single value; put it into config, or write a list such as [{entry!r}]"
        )
    kinds = [key for key in entry if key != "when"]
    if len(kinds) != 1 or kinds[0] not in KINDS:
        near = difflib.get_close_matches(str(kinds[0]), KINDS, n=1) if kinds else []
        fix = f"did you mean {near[0]}?" if near else f"give it one of {', '.join(KINDS)}, such as {EXAMPLE}"
        raise ConfigError(f"space: {name} = {dict(entry)!r} is no kind of values; {fix}")
    kind, when = kinds[0], _conditions(name, entry.get("when") or {})
    if kind == "choice":
        return Dimension(name, "choice", values=_choice(name, entry[kind], settings), when=when)
    low, high = _range(name, kind, entry[kind], settings)
    return Dimension(name, kind, low=low, high=high, when=when)


def _choice(name: str, given: Any, settings: Searchable) -> tuple[Value, ...]:
    if not isinstance(given, list | tuple):
        raise ConfigError(f"space: {name} = {given!r} must be a list of values, such as [{given!r}]")
    if not given:
        raise ConfigError(f"space: {name} = [] offers nothing to choose from; list at least one value, or remove it")
    values = tuple(settings.checked(name, value) for value in given)
    for position, value in enumerate(values):
        if _among(value, values[:position]):
            raise ConfigError(f"space: {name} lists {value!r} twice; remove one")
    return values


def _range(name: str, kind: str, given: Any, settings: Searchable) -> tuple[float, float]:
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise ConfigError(f"space: {name} = {{{kind}: {given!r}}} must have two ends: {{{kind}: [low, high]}}")
    low, high = (_number(settings.checked(name, end)) for end in given)
    for end in (low, high):
        if isinstance(end, bool) or not isinstance(end, int | float):
            raise ConfigError(f"space: {name} = {end!r} is no number, so there is no range of it; list its values")
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    most = MOST if kind == "int" else _LARGEST
    if not (abs(low) <= most and abs(high) <= most):  # also catches NaN, for which every comparison is false
        raise ConfigError(
            f"space: {name} = {{{kind}: [{shown(low)}, {shown(high)}]}} must lie between -{most:g} and {most:g}"
        )
    if low > high:
        raise ConfigError(f"space: {name} = {{{kind}: [{low}, {high}]}} has its bounds reversed; write [{high}, {low}]")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"space: {name} = {{loguniform: [{low}, {high}]}} must begin above 0; raise {low}")
    whole = settings.is_whole(name)
    if kind == "int" and (whole is False or low != int(low) or high != int(high)):
        raise ConfigError(f"space: {name} is no whole number; use uniform or loguniform instead of int")
    if kind != "int" and whole:
        raise ConfigError(f"space: {name} is a whole number; write {{int: [{low}, {high}]}} or list its values")
    return low, high


def _number(value: Value) -> Value:
    """YAML reads 1e-3 as a text."""
    with suppress(ValueError):
        return float(value) if isinstance(value, str) else value
    return value


def _conditions(name: str, given: Any) -> dict[str, tuple[Value, ...]]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"space: {name} has when = {given!r}; write when: {{setting: value}}")
    return {
        str(other): tuple(wanted) if isinstance(wanted, list | tuple) else (wanted,) for other, wanted in given.items()
    }


def _require_conditions(dimension: Dimension, parsed: Mapping[str, Dimension]) -> None:
    for other, wanted in dimension.when.items():
        place = f"space: {dimension.name} has when: {{{other}: {wanted[0]!r}}}" if wanted else ""
        if not wanted:
            raise ConfigError(f"space: {dimension.name} has an empty list at when: {{{other}: []}}; name a value")
        if other not in parsed:
            near = difflib.get_close_matches(other, parsed, n=1)
            fix = f"did you mean {near[0]}?" if near else f"add {other} to the space, or remove the condition"
            raise ConfigError(f"{place}, but {other!r} is not in the space; {fix}")
        if parsed[other].kind != "choice":
            raise ConfigError(f"{place}, but {other} is a range; conditions ask for one of a list of values")
        for value in wanted:
            if not _among(value, parsed[other].values):
                offered = ", ".join(map(repr, parsed[other].values))
                raise ConfigError(f"{place}, but {other} is never {value!r}; it may be {offered}")


def _conditions_first(parsed: Mapping[str, Dimension]) -> list[Dimension]:
    ordered: dict[str, Dimension] = {}
    while len(ordered) < len(parsed):
        ready = [
            d for _, d in sorted(parsed.items()) if d.name not in ordered and all(other in ordered for other in d.when)
        ]
        if not ready:
            circle = ", ".join(name for name in parsed if name not in ordered)
            raise ConfigError(f"space: the conditions of {circle} wait for each other; remove one `when`")
        ordered[ready[0].name] = ready[0]
    return list(ordered.values())


def _all_values(dimension: Dimension) -> Sequence[Value]:
    return dimension.values if dimension.kind == "choice" else range(int(dimension.low), int(dimension.high) + 1)


def _among(value: Value, values: Sequence[Value]) -> bool:
    """Membership that distinguishes True from 1, which Python does not."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)
