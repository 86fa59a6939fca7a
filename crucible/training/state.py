"""The exact state of a training: everything that the next step needs to give the same bits.

Weights and AdamW's moments are flat tensors (`optimizer`); what is here is the rest. No pickle is ever read.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from crucible.config import TrainConfig
from crucible.errors import CheckpointError, ConfigError
from crucible.training.optimizer import FlatAdamW
from crucible.training.saver import TensorFile
from crucible.workload.environment import cpu_model
from crucible.workload.folders import MODEL, OPTIMIZER, RNG, STATE, TRAINER_FILES, fault, safetensors_header
from crucible.workload.rng import restore_rng

__all__ = [
    "SCHEMA_VERSION",
    "environment",
    "json_files",
    "load_rng",
    "load_tensors",
    "read_state",
    "require_same_run",
    "tensor_files",
    "weights_sha256",
]

SCHEMA_VERSION = 1


def environment(device: torch.device, precision: torch.dtype, compiled: bool, processes: int) -> dict[str, Any]:
    """What may change the last bits of a result, on a CPU besides what `cpu.accelerate` adds.

    Equal environments give equal bits.
    """
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = f"{cpu_model()} ({torch.backends.cpu.get_cpu_capability()})"
    return {
        "hardware": hardware,
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "device": device.type,
        "precision": str(precision).removeprefix("torch."),
        "compile": compiled,
        "processes": processes,
    }


def tensor_files(optimizer: FlatAdamW) -> dict[str, TensorFile]:
    """The flat tensors of the state and how they are named in the checkpoint's files."""
    shapes = {name: tuple(parameter.shape) for name, parameter in optimizer.parameters.items()}
    moments = {f"{moment}.{name}": shape for moment in ("exp_avg", "exp_avg_sq") for name, shape in shapes.items()}
    return {
        MODEL: ([optimizer.weights], safetensors_header(shapes)),
        OPTIMIZER: ([optimizer.first_moment, optimizer.second_moment], safetensors_header(moments)),
    }


def weights_sha256(optimizer: FlatAdamW) -> str:
    """The sha256 that `model.safetensors` has in a checkpoint of this moment."""
    (weights,), header = tensor_files(optimizer)[MODEL]
    digest = hashlib.sha256(header)
    digest.update(weights.detach().cpu().numpy().data)
    return digest.hexdigest()


def json_files(generators: list[dict[str, Any]], state: Mapping[str, Any]) -> dict[str, bytes]:
    """The files beside the tensors; `generators`: what `capture_rng` gave in each process."""
    rng = {"schema_version": SCHEMA_VERSION, "ranks": generators}
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    state = {"schema_version": SCHEMA_VERSION, **state, "saved_at": now}
    return {RNG: (json.dumps(rng) + "\n").encode(), STATE: (json.dumps(state, indent=1) + "\n").encode()}


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a finished checkpoint folder, after all files have been verified. Raises CheckpointError."""
    problem = fault(folder, TRAINER_FILES)
    if problem is not None:
        raise CheckpointError(f"checkpoint {folder} is damaged: {problem}; resume from another one")
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    if not isinstance(state, dict) or state.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"checkpoint {folder} was written by another version of this program; start in another folder"
        )
    return state


def require_same_run(state: Mapping[str, Any], config: TrainConfig, dataset_digest: str, folder: Path) -> None:
    """Raise ConfigError if continuing would not be the same training: other data, or settings that decide weights."""
    if state["dataset_digest"] != dataset_digest:
        raise ConfigError(
            f"checkpoint {folder} was trained on dataset {state['dataset_digest']}, not {dataset_digest}; "
            f"use that dataset or start in another folder"
        )
    if changes := TrainConfig.parse(state["config"], source=str(folder / STATE)).changes(config):
        raise ConfigError(
            f"checkpoint {folder} was made with other settings ({', '.join(changes)}); use the same settings or "
            f"another folder"
        )


def load_tensors(folder: Path, optimizer: FlatAdamW) -> None:
    """Copy weights and moments of a checkpoint into the optimizer's flat buffers. Raises CheckpointError."""
    try:
        weights, moments = load_file(folder / MODEL), load_file(folder / OPTIMIZER)
        with torch.no_grad():
            for flat, source, prefix in (
                (optimizer.weights, weights, ""),
                (optimizer.first_moment, moments, "exp_avg."),
                (optimizer.second_moment, moments, "exp_avg_sq."),
            ):
                for name, piece in optimizer.named(flat):
                    piece.copy_(source[prefix + name])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {folder} does not fit this model: {error}") from None


def load_rng(folder: Path, rank: int, device: torch.device) -> None:
    """Restore the generators that process `rank` had."""
    ranks = json.loads((folder / RNG).read_text(encoding="utf-8"))["ranks"]
    if rank < len(ranks):
        restore_rng(ranks[rank], device)
