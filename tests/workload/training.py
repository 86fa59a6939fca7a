"""A small training with every kind of state that a script can have, for `resume_or_start`."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from crucible.workload import Run, resume_or_start

STEPS = 12


class Loader:
    """Batches in an order that is drawn at the start of each epoch, with a position that can be saved."""

    def __init__(self, rows: int, size: int) -> None:
        self._rows, self._size = rows, size
        self._order: list[int] = []
        self._next = 0

    def batch(self) -> torch.Tensor:
        if self._next >= len(self._order):
            self._order, self._next = torch.randperm(self._rows).tolist(), 0
        chosen = self._order[self._next : self._next + self._size]
        self._next += self._size
        return torch.tensor(chosen)

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order, self._next = state["order"], state["next"]


class Killed(Exception):
    """As by SIGKILL: nothing of the run is used afterwards."""


class Training:
    """Everything drawn from fixed seeds, so that two of them are equal before they start or resume."""

    def __init__(self) -> None:
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        self.own = np.random.default_rng(4)
        self.inputs = torch.randn(20, 6)
        self.targets = self.inputs @ torch.randn(6, 2)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        self.loader = Loader(20, 5)
        self.extra: dict[str, Any] = {"seen": 0, "noise": 1.0}

    def resume(self, folder: Path, **options: Any) -> Run:
        return resume_or_start(
            self.model,
            self.optimizer,
            self.scheduler,
            loader=self.loader,
            own=self.own,
            extra=self.extra,
            folder=folder,
            **options,
        )

    def train_one_step(self) -> float:
        rows = self.loader.batch()
        noise = random.gauss(0, 0.1) + float(np.random.normal(0, 0.1)) + self.extra["noise"] * float(self.own.normal())
        loss = nn.functional.mse_loss(self.model(self.inputs[rows] + noise), self.targets[rows])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        self.extra["seen"] += len(rows)
        self.extra["noise"] *= 0.9
        return loss.item()


def train(folder: Path, kill_after: int | None = None, save_every: int = 1, **options: Any) -> Training:
    """Train to the end, or until killed."""
    training = Training()
    run = training.resume(folder, **options)
    try:
        for step in run.steps(STEPS):
            loss = training.train_one_step()
            run.log(step, loss=loss)
            if step % save_every == 0:
                run.save(step)
            if step == kill_after:
                raise Killed
    except Killed:
        run.close()
    return training
