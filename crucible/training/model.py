"""A GPT-2-style language model with nanoGPT's mathematics.

Pre-norm blocks, learned positions, tied input and output embeddings, optional biases. Attribute names are GPT-2's
(`transformer.h.0.attn.c_attn` ...), so weights go to `transformers` and nanoGPT without renaming.
Shape suffixes: B batch, T time, D n_embd, V vocabulary.
"""

# ruff: noqa: N803, N806 (the suffixes are worth their capitals)

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from crucible.config import TrainConfig
from crucible.errors import CheckpointError
from crucible.training.cross_entropy import chunked_cross_entropy
from crucible.training.state import read_state
from crucible.workload.folders import MODEL

__all__ = ["GPT", "load_model", "padded_vocabulary"]


def padded_vocabulary(vocab_size: int) -> int:
    """Rows of the embedding: large vocabularies are rounded up to a multiple of 64, which GPUs multiply faster.

    GPT-2's 50,257 becomes 50,304 as in nanoGPT; character vocabularies stay as they are.
    """
    return vocab_size if vocab_size <= 1024 else math.ceil(vocab_size / 64) * 64


class LayerNorm(nn.Module):
    """Layer normalisation with an optional bias."""

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x_BTD: Tensor) -> Tensor:
        return functional.layer_norm(x_BTD, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    """Causal self-attention, all heads in one matrix."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.heads = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = (part.view(B, T, self.heads, -1).transpose(1, 2) for part in self.c_attn(x_BTD).split(D, dim=2))
        y = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        y_BTD = y.transpose(1, 2).reshape(B, T, D)
        out_BTD: Tensor = self.resid_dropout(self.c_proj(y_BTD))
        return out_BTD


class MLP(nn.Module):
    """Two layers with a GELU between, four times as wide inside."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out_BTD: Tensor = self.dropout(self.c_proj(functional.gelu(self.c_fc(x_BTD))))
        return out_BTD


class Block(nn.Module):
    """Attention, then MLP, each on the normalised residual stream."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.n_embd, config.bias)
        self.attn = Attention(config)
        self.ln_2 = LayerNorm(config.n_embd, config.bias)
        self.mlp = MLP(config)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn(self.ln_1(x_BTD))
        out_BTD: Tensor = x_BTD + self.mlp(self.ln_2(x_BTD))
        return out_BTD


class Transformer(nn.Module):
    """Embeddings, blocks and the last normalisation."""

    def __init__(self, config: TrainConfig, rows: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(rows, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = LayerNorm(config.n_embd, config.bias)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        positions_T = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        x_BTD: Tensor = self.drop(self.wte(tokens_BT) + self.wpe(positions_T))
        for block in self.h:
            x_BTD = block(x_BTD)
        out_BTD: Tensor = self.ln_f(x_BTD)
        return out_BTD


class GPT(nn.Module):
    """The whole model; `vocab_size` is the tokenizer's, the embedding may have a few padding rows more."""

    def __init__(self, config: TrainConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        rows = padded_vocabulary(vocab_size)
        self.transformer = Transformer(config, rows)
        self.lm_head = nn.Linear(config.n_embd, rows, bias=False)
        self.lm_head.weight = self.transformer.wte.weight
        self.chunked_loss = False
        """Whether training computes the loss without keeping the logits."""
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        # GPT-2: N(0, 0.02), biases zero; the layers that add to the residual stream are scaled down by its depth.
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2:
                depth = 2 * self.config.n_layer if name.endswith("c_proj.weight") else 1
                nn.init.normal_(parameter, mean=0.0, std=0.02 / math.sqrt(depth))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats if targets are given, else logits over the tokenizer's vocabulary.

        T may be at most `config.block_size`: there are no position embeddings beyond it.
        """
        x_BTD = self.transformer(tokens_BT)
        if self.chunked_loss and self.training and targets_BT is not None:
            return chunked_cross_entropy(x_BTD.flatten(0, 1), self.lm_head.weight, targets_BT.flatten())
        logits_BTV: Tensor = self.lm_head(x_BTD)
        if targets_BT is None:
            return logits_BTV[..., : self.vocab_size]
        return functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())

    def next_logits(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, V) of the token after each row; those of the other positions are not computed."""
        logits_BV: Tensor = self.lm_head(self.transformer(tokens_BT)[:, -1])
        return logits_BV[:, : self.vocab_size]


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> tuple[GPT, TrainConfig]:
    """The model of a checkpoint folder, in evaluation mode, and the config it was trained with.

    Raises CheckpointError if the folder does not verify or its weights do not fit its config.
    """
    folder = Path(folder)
    state = read_state(folder)
    config = TrainConfig.parse(state["config"], source=str(folder))
    model = GPT(config, state["vocab_size"])
    weights = load_file(folder / MODEL)
    weights["lm_head.weight"] = weights.get("transformer.wte.weight", torch.empty(0))  # tied, and saved once
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"checkpoint {folder} does not fit its own config: {error}") from None
    return model.to(device).eval(), config
