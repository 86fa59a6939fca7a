"""`crucible init`: a first crucible.yaml, from what a folder shows. The script is parsed, never run."""

from __future__ import annotations

import ast
import shlex
import textwrap
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from crucible.code.selection import Selection, select
from crucible.errors import ConfigError
from crucible.run_config import RunConfig

_SCRIPTS = ("train.py", "main.py", "run.py", "finetune.py", "train.sh", "run.sh")
_RESUME_FLAGS = {
    "--resume": "--resume",
    "--resume_from_checkpoint": "--resume_from_checkpoint=latest",
    "--init_from": "--init_from=resume",
    "--continue": "--continue",
}
_DATA = {".bin", ".pkl", ".npy", ".npz", ".parquet", ".h5", ".hdf5", ".csv", ".jsonl", ".txt", ".zip", ".tar", ".gz"}
_WEIGHTS = {".pt", ".pth", ".ckpt", ".safetensors"}
_SAVERS = {"save", "save_file", "save_checkpoint"}
EXAMPLES: dict[str, Any] = {
    "command": "python train.py",
    "workload": "nanogpt",
    "checkpoint": {"path": "out/ckpt.pt", "step_from": r"step (\d+)"},
    "resume": "--resume",
    "sigterm": True,
    "metrics": {"format": "pattern", "pattern": r"step (?P<step>\d+) loss (?P<train_loss>[\d.]+)"},
    "total_steps": 1000,
    "keep_checkpoints": 3,
    "output": ["out"],
    "torchrun": False,
    "reseed": True,
    "preprocess": {"command": "python prepare.py", "output": ["data"]},
    "evaluate": {"command": "python evaluate.py", "output": ["report.json"]},
    "drill": {"command": "python train.py --steps 2000", "total_steps": 2000},
    "tune": {"space": {"lr": {"loguniform": [0.0001, 0.01]}}, "metric": "accuracy", "goal": "max", "max_trials": 27},
    "include": ["configs/local.yaml"],
    "data": ["data"],
    "dependencies": "requirements.txt",
    "env": {"LOG_LEVEL": "debug"},
    "secrets": ["HF_TOKEN"],
    "name": "my-model",
    "pool": "docker-gpu",
    "dockerfile": "none",
    "resources": {"gpus": 1},
    "max_cost_usd": 5.0,
    "max_hours": 8.0,
    "max_attempts": 50,
    "finish_by": "2030-05-07T18:00+02:00",
    "tracker": ["tensorboard"],
    "project": "paper",
    "owner": "ada",
    "store": "default",
    "settings": {"model": "small"},
}
"""What the commented settings of a new file show; a setting added to `RunConfig` needs one."""


@dataclass
class Suggestion:
    """What a folder seems to need, and where each part was seen."""

    settings: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: Any, reason: str) -> None:
        self.settings[name], self.reasons[name] = value, reason


def suggest(folder: Path) -> Suggestion:
    """Look at the folder. Raises `ConfigError` when nothing in it can be packed."""
    selection = select_leniently(folder)
    found = Suggestion()
    script = _find_script(selection)
    if script is not None:
        runner = "bash" if script.endswith(".sh") else "python"
        found.add("command", f"{runner} {shlex.quote(script)}", f"{script} is here")
        if script.endswith(".py"):
            _read_script(selection.folder / script, found)
    data = sorted(
        {_data_entry(name) for name in selection.left_out if PurePosixPath(name).suffix in _DATA and name.isprintable()}
    )
    if data:
        found.add("data", data, "git ignores these, and scripts usually read such files")
    return found


def select_leniently(folder: Path) -> Selection:
    """As `select`; a folder that cannot be packed yet (too large, a secret in it) is looked at all the same."""
    try:
        return select(folder)
    except ConfigError:
        names = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*") if path.is_file())
        return Selection(folder.resolve(), names)


def _find_script(selection: Selection) -> str | None:
    # A name with a line end, or that is not UTF-8, cannot stand in the file.
    files = sorted(filter(str.isprintable, selection.files), key=lambda name: (name.count("/"), name))
    for wanted in _SCRIPTS:
        for name in files:
            if PurePosixPath(name).name == wanted and name.count("/") <= 2:
                return name
    trains = [name for name in files if PurePosixPath(name).name.startswith("train") and name.endswith(".py")]
    if trains:
        return trains[0]
    alone = [name for name in files if name.endswith(".py") and "/" not in name]
    return alone[0] if len(alone) == 1 else None


def _read_script(path: Path, found: Suggestion) -> None:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError):
        return
    modules = {
        alias.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    modules |= {(node.module or "").partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    if "init_from" in names and "ckpt.pt" in texts:
        found.add("workload", "nanogpt", f"{path.name} has init_from and ckpt.pt")
    elif "transformers" in modules and ("Trainer" in names or "SFTTrainer" in names):
        found.add("workload", "huggingface", f"{path.name} uses transformers' Trainer")
    elif modules & {"lightning", "pytorch_lightning"}:
        found.add("workload", "lightning", f"{path.name} imports lightning")
    if "workload" in found.settings:
        return
    flag = next((text for text in texts if text in _RESUME_FLAGS), None)
    if flag:
        found.add("resume", _RESUME_FLAGS[flag], f"{path.name} has the argument {flag}")
    saved = [*_saved(tree), *(text for text in texts if "/" in text)]
    paths = [PurePosixPath(text) for text in saved if PurePosixPath(text).suffix in _WEIGHTS]
    if paths and not paths[0].is_absolute() and ".." not in paths[0].parts:
        reason = f"{path.name} names this file; check that it is the path in the folder"
        found.add("checkpoint", {"path": paths[0].as_posix()}, reason)


def _saved(tree: ast.Module) -> list[str]:
    """Texts that are given to a function called save, as in `torch.save(state, "model.pt")`."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    savers = [call for call in calls if (getattr(call.func, "attr", "") or getattr(call.func, "id", "")) in _SAVERS]
    given = [value for call in savers for value in (*call.args, *(keyword.value for keyword in call.keywords))]
    return [value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str)]


def _data_entry(name: str) -> str:
    """The folder of a data file, or the file itself at the top."""
    path = PurePosixPath(name)
    return path.as_posix() if len(path.parts) == 1 else path.parent.as_posix()


def _in_one_line(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def render(found: Suggestion) -> str:
    """The text of a crucible.yaml: what was found, and every other setting in a comment."""
    lines = ["# What `crucible run` does in this folder. `crucible init --schema` prints the schema.", ""]
    for name in EXAMPLES:
        field_ = RunConfig.model_fields[name]
        lines += [f"# {line}" for line in textwrap.wrap(field_.description or "", 98)]
        if name in found.settings:
            lines.append(f"# Found: {found.reasons[name]}.")
        mark = "" if name in found.settings else "# "
        value = found.settings.get(name, EXAMPLES[name])
        lines += [f"{mark}{name}: {_in_one_line(value)}", ""]
    return "\n".join(lines)
