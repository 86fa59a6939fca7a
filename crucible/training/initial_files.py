"""Read the files of a checkpoint that others wrote: Hugging Face's GPT-2, nanoGPT's ckpt.pt, the trainer's own."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crucible.config import TrainConfig
from crucible.errors import ConfigError
from crucible.training.initial import Initial, OptimizerState
from crucible.training.initial_source import EMBEDDING, Shape
from crucible.workload.folders import MODEL, STATE

__all__ = ["checkpoint_files", "find_locally", "hub_folder", "read_initial"]

CONFIG, INDEX, NANOGPT = "config.json", "model.safetensors.index.json", "ckpt.pt"
HEAD = "lm_head.weight"
_CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""GPT-2's code multiplies by these from the other side, so its files hold them transposed."""
_MASKS = re.compile(r"\.attn\.(masked_)?bias$")
"""Buffers of older versions: which positions a token may see."""
_OF_THE_MACHINE = {"device", "compile", "dtype", "init_from"}
_ACCEPTED = (
    "a Hugging Face GPT-2 folder (config.json and model.safetensors), a .safetensors file, nanoGPT's ckpt.pt or its "
    "out_dir, or a checkpoint folder step-…"
)
_GELU = {"gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"}


def checkpoint_files(path: Path) -> dict[str, Path]:
    """The files that `read_initial` needs of a checkpoint, by the names under which they travel.

    Raises ConfigError when `path` is not there or is no checkpoint.
    """
    if path.is_file():
        beside = path.with_name(CONFIG)
        if path.suffix in (".pt", ".pth"):
            return {NANOGPT: path}
        if path.suffix == ".safetensors":
            return {MODEL: path, **({CONFIG: beside} if beside.is_file() else {})}
        raise ConfigError(f"init_from: {path} is not a checkpoint; give {_ACCEPTED}")
    if not path.exists():
        raise ConfigError(f"init_from: {path} does not exist on this machine; give {_ACCEPTED}")
    if (path / STATE).is_file() and (path / MODEL).is_file():
        return {name: path / name for name in (STATE, MODEL)}
    if (path / INDEX).is_file():
        parts = set(_read_json(path / INDEX).get("weight_map", {}).values())
        return _all_there(path, [CONFIG, INDEX, *sorted(parts)])
    for names in ([CONFIG, MODEL], [MODEL], [NANOGPT]):
        if all((path / name).is_file() for name in names):
            return _all_there(path, names)
    if (path / "pytorch_model.bin").is_file():
        raise ConfigError(
            f"init_from: {path} holds its weights as pytorch_model.bin; load it with transformers and save it again, "
            "which writes model.safetensors"
        )
    raise ConfigError(f"init_from: {path} holds no checkpoint; give {_ACCEPTED}")


def find_locally(place: str) -> Path:
    """The file or folder on this machine of `Source.place`, from the Hugging Face Hub if need be.

    Raises ConfigError for one that only a store has.
    """
    if place.startswith("hf:"):
        return hub_folder(place.removeprefix("hf:"))
    if place.startswith(("job:", "weights:")):
        raise ConfigError(
            f"init_from = {place!r} lies in a store, which the trainer alone does not read; start it with "
            "train-nanogpt, or fetch the folder with `crucible checkpoints get JOB DIR` and name that"
        )
    return Path(place).expanduser()


def read_initial(path: Path, *, resume: bool = False, source: str = "") -> Initial:
    """Read a checkpoint from its folder or file; `source` is what messages call it.

    Raises ConfigError for what is no checkpoint of a GPT-2, and for `resume` with one that is not nanoGPT's.
    """
    files, source = checkpoint_files(path), source or str(path)
    try:
        if NANOGPT in files:
            return _read_nanogpt(files[NANOGPT], source, resume)
        if resume:
            raise ConfigError(
                f"init_from: resume: goes on with nanoGPT's ckpt.pt, and {source} is none; leave out resume: to take "
                "its weights. A job goes on by itself when you start it again with its name"
            )
        if STATE in files:
            state = _read_json(files[STATE])
            weights = load_file(files[MODEL])
            return Initial(source, Shape.of(weights, int(state["config"]["n_head"]), source), weights)
        return _read_huggingface(files, source)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"init_from: {source} cannot be read: {error!r}") from None


def hub_folder(repository: str) -> Path:
    """The folder of a model on the Hugging Face Hub, downloaded unless it is in the cache of `huggingface_hub`.

    Raises ConfigError when it cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ConfigError(
            f"init_from: hf:{repository} needs huggingface_hub; install it (pip install huggingface_hub) or give a "
            "local folder"
        ) from None
    wanted = [CONFIG, "*.safetensors", INDEX]
    try:
        return Path(snapshot_download(repository, allow_patterns=wanted))
    except Exception as error:  # noqa: BLE001 - the library's own and its HTTP client's have no common base
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"init_from: {repository} cannot be had from the Hugging Face Hub: {reason}; give a local folder"
        ) from None


def _read_huggingface(files: Mapping[str, Path], source: str) -> Initial:
    config = _read_json(files[CONFIG]) if CONFIG in files else {}
    _require_gpt2(config, source)
    raw: dict[str, Tensor] = {}
    for name, file in files.items():
        if name.endswith(".safetensors"):
            raw.update(load_file(file))
    weights = {
        name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": tensor
        for name, tensor in raw.items()
    }
    embedding, head = weights.get(EMBEDDING), weights.pop(HEAD, None)
    if embedding is not None and head is not None and not torch.equal(embedding, head):
        raise ConfigError(f"init_from: {source} has a head of its own; here head and embedding are one")
    weights = {name: tensor.float() for name, tensor in weights.items() if not _is_mask(name, tensor)}
    n_head = config.get("n_head")
    shape = Shape.of(weights, None if n_head is None else int(n_head), source)
    attention = weights.get("transformer.h.0.attn.c_attn.weight")
    if attention is not None and tuple(attention.shape) == (shape.n_embd, 3 * shape.n_embd):
        weights = {name: tensor.t() if name.endswith(_CONV1D) else tensor for name, tensor in weights.items()}
    activation, remarks = config.get("activation_function", "gelu"), []
    if activation != "gelu":
        remarks.append(f"{source} approximates GELU ({activation}); this model computes it exactly, as nanoGPT does")
    return Initial(source, shape, weights, remarks=remarks)


def _require_gpt2(config: Mapping[str, Any], source: str) -> None:
    """Raise ConfigError for what this model cannot compute."""
    expected: dict[str, Any] = {
        "model_type": "gpt2",
        "n_inner": None if config.get("n_embd") is None else 4 * config["n_embd"],
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }
    for name, value in expected.items():
        if (given := config.get(name)) not in (None, value):
            raise ConfigError(f"init_from: {source} has {name} = {given!r}; only {value!r} can be loaded")
    if (activation := config.get("activation_function", "gelu")) not in _GELU:
        raise ConfigError(f"init_from: {source} has activation_function = {activation!r}; only GELU can be loaded")


def _read_nanogpt(file: Path, source: str, resume: bool) -> Initial:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"init_from: {source} is no checkpoint of nanoGPT that can be read without executing what is in it: "
            f"{reason}"
        ) from None
    if not isinstance(content, dict) or not {"model", "model_args"} <= content.keys():
        raise ConfigError(f"init_from: {source} is no checkpoint of nanoGPT: it has no model and model_args")
    named = {name.removeprefix("_orig_mod."): tensor for name, tensor in content["model"].items()}
    weights = {name: t.float() for name, t in named.items() if name != HEAD and not _is_mask(name, t)}
    shape = Shape.of(weights, int(content["model_args"]["n_head"]), source)
    return Initial(source, shape, weights, _progress(content, weights, source) if resume else None)


def _progress(content: Mapping[str, Any], weights: Mapping[str, Tensor], source: str) -> OptimizerState:
    """nanoGPT's optimizer has matrices in its first group and vectors in its second, each in the model's order."""
    if not {"optimizer", "iter_num"} <= content.keys():
        raise ConfigError(f"init_from: {source} has no optimizer and iter_num to go on with; leave out resume:")
    state, groups = content["optimizer"]["state"], content["optimizer"]["param_groups"]
    names = sorted(weights, key=lambda name: weights[name].dim() < 2)
    if state and len(state) != len(names):
        raise ConfigError(f"init_from: {source} has {len(state)} parameters in its optimizer, not {len(names)}")

    def moments(kind: str) -> dict[str, Tensor]:
        if not state:
            return {name: torch.zeros_like(weights[name]) for name in names}
        return {name: state[number][kind].float() for number, name in enumerate(names)}

    best = content.get("best_val_loss")
    own = {name: value for name, value in content.get("config", {}).items() if name in TrainConfig.model_fields}
    own |= {"weight_decay": groups[0]["weight_decay"], "beta1": groups[0]["betas"][0], "beta2": groups[0]["betas"][1]}
    return OptimizerState(
        step=int(content["iter_num"]),
        updates=int(state[0]["step"]) if state else 0,
        best_val_loss=None if best is None or float(best) >= 1e8 else float(best),  # nanoGPT begins with 1e9
        first_moment=moments("exp_avg"),
        second_moment=moments("exp_avg_sq"),
        settings={name: value for name, value in own.items() if name not in _OF_THE_MACHINE},
    )


def _is_mask(name: str, tensor: Tensor) -> bool:
    return _MASKS.search(name) is not None and tensor.dim() in (0, 4)


def _all_there(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    files = {name: folder / name for name in names}
    if missing := [name for name, file in files.items() if not file.is_file() or file.parent != folder]:
        raise ConfigError(f"init_from: {folder} has no {', '.join(missing)}")
    return files


def _read_json(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ConfigError(f"init_from: {file} is no JSON object")
    return content
