"""What ECS would refuse of a task, found before it is asked, with the variable and the limit.

The limits are those of the API references of RunTask and RegisterTaskDefinition.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

MAX_OVERRIDES = 8192
MAX_TAGS, MAX_TAG_KEY, MAX_TAG_VALUE = 50, 128, 256
MAX_STOP_TIMEOUT_SECONDS = 120
_FAMILY = re.compile(r"[a-zA-Z0-9_-]{1,255}")


def problems(
    task_definition: Mapping[str, Any],
    task_run_request: Mapping[str, Any],
    command: str | None,
    environment: Mapping[str, str | None],
    labels: Mapping[str, str | None],
) -> Iterator[str]:
    """Everything that ECS would refuse, each with its job variable and the limit."""
    yield from _overrides(task_run_request, command, environment)
    yield from _tags(task_run_request.get("tags") or {}, labels)
    family = task_definition.get("family")
    if family and not _FAMILY.fullmatch(str(family)):
        yield f"family = {family!r}: ECS takes up to 255 letters, digits, '-' and '_'"
    for container in task_definition.get("containerDefinitions") or []:
        seconds = container.get("stopTimeout")
        if isinstance(seconds, int) and seconds > MAX_STOP_TIMEOUT_SECONDS:
            yield f"stop_timeout = {seconds}: ECS allows at most {MAX_STOP_TIMEOUT_SECONDS} seconds"


def _overrides(
    task_run_request: Mapping[str, Any], command: str | None, environment: Mapping[str, str | None]
) -> Iterator[str]:
    given = [{"name": name, "value": value} for name, value in environment.items() if value is not None]
    overrides = {
        **(task_run_request.get("overrides") or {}),
        "containerOverrides": [{"name": "prefect", "command": [command or ""], "environment": given}],
    }
    length = len(json.dumps(overrides, separators=(",", ":")))
    if length > MAX_OVERRIDES:
        longest = max(given, key=lambda item: len(str(item["value"])), default={"name": "command", "value": command})
        yield (
            f"env and command: together {length} characters, and ECS allows {MAX_OVERRIDES} for a task's overrides; "
            f"the longest is {longest['name']} with {len(str(longest['value']))}"
        )


def _tags(tags: Mapping[str, Any] | list[dict[str, str]], labels: Mapping[str, str | None]) -> Iterator[str]:
    own = tags.items() if isinstance(tags, Mapping) else [(tag["key"], tag["value"]) for tag in tags]
    every = {name: value for name, value in [*own, *labels.items()] if value is not None}
    if len(every) > MAX_TAGS:
        yield f"labels: {len(every)} tags, and ECS allows {MAX_TAGS}"
    for name, value in every.items():
        if len(name) > MAX_TAG_KEY:
            yield f"labels: the name {name[:40]!r}… has {len(name)} characters, and ECS allows {MAX_TAG_KEY}"
        if len(str(value)) > MAX_TAG_VALUE:
            yield f"label or tag {name}: {len(str(value))} characters, and ECS allows {MAX_TAG_VALUE}"
