"""The losses a training measures of itself: estimates on the way, the whole validation split at the end."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from crucible.config import TrainConfig
from crucible.training.data import Dataset, SplitName
from crucible.training.evaluate import estimate_loss, full_loss
from crucible.training.model import GPT

__all__ = ["Losses"]


class Losses:
    """What is known of the losses after exactly this step, in nats per token, and which step was the best so far."""

    def __init__(
        self, model: GPT, dataset: Dataset, config: TrainConfig, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self._model, self._dataset, self._batches, self._autocast = model, dataset, config.eval_iters, autocast
        self.known: dict[str, float] = {}
        """`val_loss`, and at the end `train_loss`; empty: not measured."""
        self.estimated_val_loss: float | None = None
        """What the best step is chosen by."""
        self.full_val_loss: float | None = None
        """Over the whole split; known at the end only."""
        self.best: dict[str, float] | None = None
        """`step` and its estimated `val_loss`."""

    def step_made(self) -> None:
        """Forget the losses of the step before."""
        self.known, self.estimated_val_loss = {}, None

    def estimate(self, step: int, stop: Callable[[], bool]) -> tuple[float, float]:
        """Both losses over a few batches, the same at every call: (train, val). Raises EvaluationStopped."""
        train_loss, val_loss = self._estimate("train", stop), self._estimate("val", stop)
        self.known = {"val_loss": val_loss}
        self._compare(step, val_loss)
        return train_loss, val_loss

    def measure(self, step: int, stop: Callable[[], bool]) -> tuple[float, float]:
        """The final losses in float32, val over every token of its split. Raises EvaluationStopped once `stop` does."""
        train_loss = estimate_loss(self._model, self._dataset, "train", self._batches, stop=stop)
        val_loss = full_loss(self._model, self._dataset, "val", stop=stop)
        self._compare(step, self._estimate("val", stop))
        self.known = {"train_loss": train_loss, "val_loss": val_loss}
        self.full_val_loss = val_loss
        return train_loss, val_loss

    @property
    def best_step(self) -> int | None:
        return int(self.best["step"]) if self.best else None

    def _estimate(self, split: SplitName, stop: Callable[[], bool]) -> float:
        return estimate_loss(self._model, self._dataset, split, self._batches, self._autocast(), stop=stop)

    def _compare(self, step: int, val_loss: float) -> None:
        self.estimated_val_loss = val_loss
        if self.best is None or val_loss < self.best["val_loss"]:
            self.best = {"step": step, "val_loss": val_loss}
