"""Write docs/python-api.md from the docstrings of what a user imports: python -m scripts.python_api"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "python-api.md"

CONTENT = {
    "Start and follow": ("crucible", ["submit", "job", "JobHandle", "Status"]),
    "Estimate": ("crucible.estimate.request", ["estimate"]),
    "Sweeps": ("crucible", ["sweep"]),
    "In a training script": ("crucible.workload", ["resume_or_start", "Run"]),
}
"""Section: the module, and the names in it."""
RUN = ("steps", "maybe_save", "log", "save", "close")
"""Of a run, what a script calls; the rest is for callbacks."""


def page() -> str:
    """The page as the docstrings have it now."""
    parts = [
        "# Python API",
        "<!-- Made by python -m scripts.python_api from the docstrings: edit those. -->",
        _text(_module("crucible.api").__doc__),
    ]
    for title, (module, names) in CONTENT.items():
        parts.append(f"## {title}")
        prefix = "crucible.workload" if module == "crucible.workload" else "crucible"
        for name in names:
            parts += _entry(f"{prefix}.{name}", getattr(_module(module), name))
    return "\n\n".join(parts) + "\n"


def _entry(name: str, value: Any) -> list[str]:
    if not inspect.isclass(value):
        return [f"### `{name}{_signature(value)}`", _text(value.__doc__)]
    parts = [f"### `{name}`", _text(value.__doc__)]
    if attributes := _attributes(value):
        parts.append("\n".join(["| | |", "|---|---|", *(f"| `{name}` | {text} |" for name, text in attributes)]))
    for method in RUN if value.__name__ == "Run" else vars(value):
        found = getattr(value, method)
        if not method.startswith("_") and inspect.isfunction(found):
            parts += [f"#### `.{method}{_signature(found)}`", _text(found.__doc__)]
    return parts


def _attributes(kind: type) -> list[tuple[str, str]]:
    """Fields and properties with the text that stands under them, in the order of the source."""
    source = inspect.getsource(kind.__mro__[-2])  # where there is a base class, it has the attributes
    (tree,) = ast.parse(source).body
    found: dict[str, str] = dict.fromkeys(getattr(kind, "__dataclass_fields__", {}), "")
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement, text in itertools.pairwise(body if isinstance(body, list) else []):
            targets = getattr(statement, "targets", [getattr(statement, "target", None)])
            name = getattr(targets[0], "attr", getattr(targets[0], "id", "_"))
            is_text = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if (
                isinstance(statement, ast.Assign | ast.AnnAssign)
                and is_text
                and not name.startswith("_")
                and name != "required"
            ):
                found[name] = _line(str(text.value.value))
    properties = {name: _line(p.__doc__ or "") for name, p in vars(kind).items() if isinstance(p, property)}
    return [*found.items(), *properties.items()]


def _signature(function: Any) -> str:
    parameters = inspect.signature(function).parameters.values()
    shown = [str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters if p.name != "self"]
    if any(p.kind is p.KEYWORD_ONLY for p in parameters) and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        first = next(i for i, p in enumerate(p for p in parameters if p.name != "self") if p.kind is p.KEYWORD_ONLY)
        shown.insert(first, "*")
    return f"({', '.join(shown)})"


def _text(docstring: str | None) -> str:
    """A docstring as markdown: sections become lists, examples code."""
    lines: list[str] = []
    for block in inspect.cleandoc(docstring or "").split("\n\n"):
        if block.startswith(("Args:", "Raises:")):
            title, *entries = block.splitlines()
            joined = re.sub(r"\n {8,}", " ", "\n".join(entries))
            items = [re.sub(r"^    ([^:]+): ", r"- `\1`: ", entry) for entry in joined.splitlines()]
            block = "\n".join([title.replace("Args", "Arguments"), "", *items])
        elif block.startswith(">>>"):
            code = re.sub(r"^(>>>|\.\.\.) ?", "", block.replace("  # doctest: +SKIP", ""), flags=re.M)
            block = f"```python\n{code}\n```"
        elif all(line.startswith("    ") for line in block.splitlines()):
            block = f"```python\n{inspect.cleandoc(block)}\n```"
        lines.append(block)
    return "\n\n".join(lines)


def _line(text: str) -> str:
    return " ".join(text.split())


def _module(name: str) -> Any:
    return importlib.import_module(name)


if __name__ == "__main__":
    PAGE.write_text(page())
