"""Export a model for `transformers`: `GPT2LMHeadModel.from_pretrained(folder)` gives equal logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from crucible.datasets.tokenizers import Tokenizer
from crucible.evaluation.checkpoint import TrainedModel
from crucible.evaluation.tokenizer import write_tokenizer

TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
"""GPT-2's code multiplies by these from the other side (its `Conv1D`), so they are stored the other way round."""


def export_huggingface(trained: TrainedModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write `config.json`, `model.safetensors` and the tokenizer to `folder`.

    Rows that only pad the embedding to a round size are left out, and where the model has no biases zeros stand for
    them, since GPT-2 always adds some.
    """
    special = write_tokenizer(tokenizer, folder, trained.config.block_size)
    config = _config(trained, special)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(_weights(trained), folder / "model.safetensors", metadata={"format": "pt"})


def _config(trained: TrainedModel, end_of_text: int | None) -> dict[str, Any]:
    config = trained.config
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": trained.model.vocab_size,
        "n_positions": config.block_size,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "activation_function": "gelu",  # the exact one, as nanoGPT has; GPT-2's own is an approximation
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "tie_word_embeddings": True,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
    }


def _weights(trained: TrainedModel) -> dict[str, Tensor]:
    weights = {}
    for name, tensor in trained.model.state_dict().items():
        if name == "lm_head.weight":  # tied to the embedding
            continue
        kept = tensor[: trained.model.vocab_size] if name == "transformer.wte.weight" else tensor
        weights[name] = (kept.t() if name.endswith(TRANSPOSED) else kept).contiguous()
    for name in [name for name in weights if name.endswith(".weight") and ".wte." not in name and ".wpe." not in name]:
        bias = name.removesuffix("weight") + "bias"
        weights.setdefault(bias, torch.zeros(weights[name].shape[-1]))
    return weights
