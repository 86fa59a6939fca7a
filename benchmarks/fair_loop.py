"""The loop that our trainer is compared with on a GPU: written as nanoGPT's train.py does it, in our own words.

Compiled, bfloat16 by autocast, TF32, fused AdamW, gradient accumulation in micro-batches of `batch_size`, and the next
batch gathered and copied from pinned memory after each forward pass. Nothing is asked to be deterministic. It draws the
trainer's own sequences, so both see the same losses.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from crucible.config import TrainConfig
from crucible.training.model import GPT
from crucible.training.optimizer import learning_rate


class FairLoop:
    """`step()` trains one step and returns its loss, on the device."""

    def __init__(self, config: TrainConfig, tokens: Path, vocab_size: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.on_gpu = device.type == "cuda"
        self.data = np.memmap(tokens, dtype=np.uint16, mode="r")
        self.done = self.micro_step = 0
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.manual_seed(config.seed)
        self.model = GPT(config, vocab_size).to(device)
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
        betas = (config.beta1, config.beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=self.on_gpu)
        self.forward = torch.compile(self.model) if config.compile else self.model
        self.autocast = torch.autocast("cuda", torch.bfloat16) if self.on_gpu else nullcontext()
        self.next = self.batch()

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of the next micro-batch: (batch_size, block_size) each."""
        config, length = self.config, self.config.block_size
        step, micro_step = divmod(self.micro_step, config.gradient_accumulation_steps)
        self.micro_step += 1
        generator = np.random.Generator(np.random.Philox(key=[config.seed, 0], counter=[0, 0, 0, step]))
        rows = config.batch_size * config.gradient_accumulation_steps
        starts = generator.integers(0, len(self.data) - length, size=rows)
        starts = starts[micro_step * config.batch_size : (micro_step + 1) * config.batch_size]
        x = torch.stack([torch.from_numpy(self.data[i : i + length].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(self.data[i + 1 : i + 1 + length].astype(np.int64)) for i in starts])
        if not self.on_gpu:
            return x, y
        x, y = (half.pin_memory().to(self.device, non_blocking=True) for half in (x, y))
        return x, y

    def step(self) -> torch.Tensor:
        """One optimizer step; does not wait for the GPU."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.done)
        total = torch.zeros((), device=self.device)
        for _ in range(self.config.gradient_accumulation_steps):
            with self.autocast:
                loss = self.forward(*self.next) / self.config.gradient_accumulation_steps
            self.next = self.batch()
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return total
