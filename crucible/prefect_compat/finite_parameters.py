"""`prefect deployment run -p max_cost_usd=NaN`: refused, instead of a run without a cap.

Prefect's command reads a parameter as JSON with Python's extensions, and its client writes NaN and infinite numbers as
null. The server then sees no value at all. So the command line gets the text "NaN" in such a number's place, which the
server refuses as no number. Programs that call `run_deployment` with a NaN of their own cannot be helped this way.

Upstream issue: none found. Delete this when Prefect's command refuses such numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

ONE, MANY = ("-p", "--param"), ("--params",)
"""Options of `prefect deployment run`: one parameter (name=JSON), and all of them (a JSON object)."""


def with_finite_parameters(arguments: Sequence[str]) -> list[str]:
    """The arguments of `prefect deployment …` with every number that JSON does not have as a text."""
    fixed = list(arguments)
    for place, argument in enumerate(fixed):
        option, equals, rest = argument.partition("=")
        if option not in ONE + MANY:
            continue
        if equals:
            fixed[place] = f"{option}={_fixed(option, rest)}"
        elif place + 1 < len(fixed):
            fixed[place + 1] = _fixed(option, fixed[place + 1])
    return fixed


def _fixed(option: str, value: str) -> str:
    if option in MANY:
        return _finite(value)
    name, equals, number = value.partition("=")
    return f"{name}{equals}{_finite(number)}"


def _finite(text: str) -> str:
    """The JSON text, changed only if it holds such a number."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # Prefect says what is wrong with it
        return text
    changed = _as_texts(value)
    return text if changed == value else json.dumps(changed)


def _as_texts(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return str(value)
        case dict():
            return {key: _as_texts(entry) for key, entry in value.items()}
        case list():
            return [_as_texts(entry) for entry in value]
        case _:
            return value
