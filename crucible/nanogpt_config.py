"""nanoGPT's config/*.py files, read and not executed: assignments of literals and simple arithmetic.

    batch_size = 12
    gradient_accumulation_steps = 5 * 8
    lr_decay_iters = max_iters  # a name that the file has given a value before

What a file leaves out has the default of nanoGPT's train.py, as it would have there.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible.errors import ConfigError

__all__ = ["NANOGPT_DEFAULTS", "NANOGPT_HINTS", "NanogptConfig", "read_nanogpt_config"]

NANOGPT_DEFAULTS: Mapping[str, Any] = {
    "n_layer": 12,
    "n_head": 12,
    "n_embd": 768,
    "block_size": 1024,
    "dropout": 0.0,
    "bias": False,
    "batch_size": 12,
    "gradient_accumulation_steps": 40,
    "max_iters": 600_000,
    "learning_rate": 6e-4,
    "decay_lr": True,
    "warmup_iters": 2000,
    "lr_decay_iters": 600_000,
    "min_lr": 6e-5,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "grad_clip": 1.0,
    "seed": 1337,
    "eval_interval": 2000,
    "eval_iters": 200,
    "log_interval": 1,
    "compile": True,
}
"""Of nanoGPT's train.py, for the settings that there are here. Its device and dtype follow from the machine, as `auto`
does."""

NANOGPT_HINTS: Mapping[str, str] = {
    "eval_only": "run the evaluate flow on the job",
    "always_save_checkpoint": "remove it, checkpoints are always saved",
    "betas": "set beta1 and beta2",
    "out_dir": "remove it, `crucible checkpoints get JOB DIR` fetches checkpoints",
    "dataset": "give the dataset beside the configuration: its source may be nanoGPT's data folder",
    "backend": "remove it, it follows from the device",
    "wandb_log": "remove it, `crucible jobs report JOB` shows the curves",
    "wandb_project": "remove it",
    "wandb_run_name": "remove it, the job's name is the run's name",
}
"""Keys of nanoGPT's files that have no field here, and what to do about each."""

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


@dataclass(frozen=True)
class NanogptConfig:
    """What a file states: its settings, and the keys that have no meaning here."""

    settings: Mapping[str, Any]
    left_out: Mapping[str, str]
    """By key, what takes its place."""


def read_nanogpt_config(path: Path) -> NanogptConfig:
    """Read the file. Raises ConfigError naming every line that is more than a value, and `eval_only`."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"config file {path} cannot be read: {reason}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"config file {path} is not Python: {error}") from None
    values: dict[str, Any] = {}
    problems: list[str] = []
    for statement in tree.body:
        _read(statement, values, problems)
    if problems:
        raise ConfigError(f"config file {path} is read, not executed: {'; '.join(problems)}")
    if values.get("eval_only"):
        raise ConfigError(f"config file {path}: eval_only = True trains nothing; {NANOGPT_HINTS['eval_only']}")
    if values.get("init_from") == "resume":
        values["init_from"] = f"resume:{values.get('out_dir', 'out')}/ckpt.pt"
    return NanogptConfig(
        settings={name: value for name, value in values.items() if name not in NANOGPT_HINTS},
        left_out={name: NANOGPT_HINTS[name] for name in values if name in NANOGPT_HINTS},
    )


def _read(statement: ast.stmt, values: dict[str, Any], problems: list[str]) -> None:
    if isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass):
        return  # for what is not read here either, such as the time in a run's name
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return  # a docstring
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
        names, value = [statement.target.id], statement.value
    elif isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name) for target in statement.targets):
        names, value = [target.id for target in statement.targets if isinstance(target, ast.Name)], statement.value
    else:
        problems.append(f"line {statement.lineno} is no assignment of a value; write the value out")
        return
    try:
        result = _value(value, values)
    except (ValueError, ArithmeticError, TypeError, RecursionError):
        if any(name not in NANOGPT_HINTS for name in names):
            problems.append(f"line {statement.lineno}: {names[0]} is computed; write its value out")
            return
        result = None
    values.update(dict.fromkeys(names, result))


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """Raises ValueError for what is neither a literal, nor arithmetic with them, nor a name with a value."""
    if isinstance(node, ast.Name):
        if node.id not in values:
            raise ValueError(node.id)
        return values[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _value(node.left, values), _value(node.right, values)
        if not all(isinstance(side, int | float) for side in (left, right)):
            raise ValueError("arithmetic is for numbers")
        return _OPERATORS[type(node.op)](left, right)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, values)
    return ast.literal_eval(node)
