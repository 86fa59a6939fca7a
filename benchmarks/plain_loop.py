"""The loop that our trainer is compared with: the same model, trained as one would write it down in ten minutes.

Eager, float32, default AdamW, and nanoGPT's way of making a batch: one `torch.from_numpy` per sequence from a memmap
that is opened anew each step. It draws the same sequences as the trainer, so both see the same losses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from crucible.config import TrainConfig
from crucible.training.model import GPT
from crucible.training.optimizer import learning_rate


class PlainLoop:
    """`step()` trains one step and returns its loss."""

    def __init__(self, config: TrainConfig, tokens: Path, vocab_size: int, device: str = "cpu") -> None:
        self.config, self.tokens, self.device = config, tokens, device
        self.done = 0
        torch.manual_seed(config.seed)
        self.model = GPT(config, vocab_size).to(device)
        groups = [
            {"params": [p for p in self.model.parameters() if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in self.model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of this step: (batch_size, block_size) each."""
        data = np.memmap(self.tokens, dtype=np.uint16, mode="r")
        length = self.config.block_size
        generator = np.random.Generator(np.random.Philox(key=[self.config.seed, 0], counter=[0, 0, 0, self.done]))
        starts = generator.integers(0, len(data) - length, size=self.config.batch_size)
        x = torch.stack([torch.from_numpy(data[i : i + length].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + length].astype(np.int64)) for i in starts])
        return x.to(self.device), y.to(self.device)

    def step(self) -> float:
        """One optimizer step."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.done)
        loss = self.model(*self.batch())
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.done += 1
        return float(loss.item())
