"""A program in the manner of nanoGPT, in our own words: what its train.py reads, writes and computes.

Names of parameters and keys are nanoGPT's, since they are the format. It knows nothing of Crucible.
"""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class Norm(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    """Without flash attention: a mask, which is part of the state."""

    bias: Tensor

    def __init__(self, n_embd: int, n_head: int, block_size: int, bias: bool) -> None:
        super().__init__()
        self.n_head = n_head
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd, bias=bias), nn.Linear(n_embd, n_embd, bias=bias)
        self.register_buffer("bias", torch.tril(torch.ones(block_size, block_size))[None, None])

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.n_head, -1).transpose(1, 2) for part in self.c_attn(x).split(c, dim=2))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(k.shape[-1])
        shares = scores.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf")).softmax(dim=-1)
        out: Tensor = self.c_proj((shares @ v).transpose(1, 2).reshape(b, t, c))
        return out


class Feedforward(nn.Module):
    def __init__(self, n_embd: int, bias: bool) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(n_embd, 4 * n_embd, bias=bias), nn.Linear(4 * n_embd, n_embd, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(functional.gelu(self.c_fc(x)))
        return out


class Layer(nn.Module):
    def __init__(self, n_embd: int, n_head: int, block_size: int, bias: bool) -> None:
        super().__init__()
        self.ln_1, self.attn = Norm(n_embd, bias), Attention(n_embd, n_head, block_size, bias)
        self.ln_2, self.mlp = Norm(n_embd, bias), Feedforward(n_embd, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Model(nn.Module):
    """Made of `model_args`."""

    def __init__(
        self, n_layer: int, n_head: int, n_embd: int, block_size: int, bias: bool, vocab_size: int, dropout: float
    ) -> None:
        super().__init__()
        assert not dropout
        layers = nn.ModuleList(Layer(n_embd, n_head, block_size, bias) for _ in range(n_layer))
        parts = {"wte": nn.Embedding(vocab_size, n_embd), "wpe": nn.Embedding(block_size, n_embd)}
        self.transformer = nn.ModuleDict({**parts, "h": layers, "ln_f": Norm(n_embd, bias)})
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight
        for parameter in self.parameters():
            if parameter.dim() >= 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.transformer["wte"](tokens) + self.transformer["wpe"](torch.arange(tokens.shape[1]))
        for layer in self.transformer["h"]:  # type: ignore[union-attr]
            x = layer(x)
        logits: Tensor = self.lm_head(self.transformer["ln_f"](x))
        return logits

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(self(tokens).flatten(0, 1), targets.flatten())


@dataclass
class Training:
    """The state that train.py has between two iterations."""

    model: Model
    optimizer: torch.optim.AdamW
    model_args: dict[str, Any]
    config: dict[str, Any]
    iter_num: int = 0
    best_val_loss: float | Tensor = 1e9

    @classmethod
    def start(cls, model_args: dict[str, Any], config: dict[str, Any]) -> Training:
        torch.manual_seed(config["seed"])
        model = Model(**model_args)
        every = list(model.parameters())
        groups = [
            {"params": [p for p in every if p.dim() >= 2], "weight_decay": config["weight_decay"]},
            {"params": [p for p in every if p.dim() < 2], "weight_decay": 0.0},
        ]
        betas = (config["beta1"], config["beta2"])
        return cls(model, torch.optim.AdamW(groups, lr=config["learning_rate"], betas=betas), model_args, config)

    @classmethod
    def resume(cls, file: Path, config: dict[str, Any]) -> Training:
        """`--init_from=resume`: the shape is the checkpoint's, the settings are those given."""
        found = torch.load(file, map_location="cpu", weights_only=True)
        training = cls.start(found["model_args"], config)
        weights = {name.removeprefix("_orig_mod."): tensor for name, tensor in found["model"].items()}
        masks = {name: tensor for name, tensor in training.model.state_dict().items() if name.endswith("attn.bias")}
        training.model.load_state_dict({**masks, **weights})
        training.optimizer.load_state_dict(found["optimizer"])
        training.iter_num, training.best_val_loss = found["iter_num"], found["best_val_loss"]
        return training

    def save(self, file: Path) -> None:
        """As a compiled model is saved."""
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "model": {f"_orig_mod.{name}": tensor for name, tensor in self.model.state_dict().items()},
            "optimizer": self.optimizer.state_dict(),
            "model_args": self.model_args,
            "iter_num": self.iter_num,
            "best_val_loss": torch.tensor(float(self.best_val_loss)),
            "config": self.config,
        }
        torch.save(content, file)

    def learning_rate(self) -> float:
        config, it = self.config, self.iter_num
        if not config["decay_lr"]:
            return float(config["learning_rate"])
        if it < config["warmup_iters"]:
            return float(config["learning_rate"] * (it + 1) / (config["warmup_iters"] + 1))
        if it > config["lr_decay_iters"]:
            return float(config["min_lr"])
        share = (it - config["warmup_iters"]) / (config["lr_decay_iters"] - config["warmup_iters"])
        cosine = 0.5 * (1.0 + math.cos(math.pi * share))
        return float(config["min_lr"] + cosine * (config["learning_rate"] - config["min_lr"]))

    def step(self, tokens: Tensor, targets: Tensor) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        loss = self.model.loss(tokens, targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config["grad_clip"])
        self.optimizer.step()
        self.iter_num += 1
        return loss.item()

    def batch(self, data: Path, split: str = "train") -> tuple[Tensor, Tensor]:
        """A random one of train.bin or val.bin."""
        tokens = np.memmap(data / f"{split}.bin", dtype=np.uint16, mode="r")
        length = self.model_args["block_size"]
        starts = torch.randint(len(tokens) - length, (self.config["batch_size"],)).tolist()
        rows = torch.stack([torch.from_numpy(tokens[i : i + length + 1].astype(np.int64)) for i in starts])
        return rows[:, :-1], rows[:, 1:]

    @torch.no_grad()
    def estimate(self, data: Path) -> float:
        torch.manual_seed(7)
        return sum(self.model.loss(*self.batch(data, "val")).item() for _ in range(20)) / 20


def prepare(data: Path) -> int:
    """Write train.bin, val.bin and meta.pkl of a text with a simple grammar; returns the number of characters."""
    rng = np.random.default_rng(0)
    words = ["the cat ", "a dog ", "sees ", "hears ", "the moon.\n", "a song!\n"]
    text = "".join(words[2 * (n % 3) + choice] for n, choice in enumerate(rng.integers(0, 2, 6000)))
    letters = sorted(set(text))
    ids = np.array([letters.index(letter) for letter in text], dtype=np.uint16)
    data.mkdir(parents=True)
    cut = int(0.9 * len(ids))
    ids[:cut].tofile(data / "train.bin")
    ids[cut:].tofile(data / "val.bin")
    table = {
        "vocab_size": len(letters),
        "itos": dict(enumerate(letters)),
        "stoi": {c: i for i, c in enumerate(letters)},
    }
    (data / "meta.pkl").write_bytes(pickle.dumps(table))
    return len(letters)
