"""What a training measures of itself while it runs: mean loss and gradient norm, and speed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from crucible.errors import TrainingError
from crucible.training.processes import Processes

__all__ = ["Means", "Progress"]

_SECONDS_BETWEEN_LINES = 2.0


class Progress:
    """Measures speed between reports, with evaluation and saving set aside, and prints lines at a readable rate."""

    def __init__(self, step: int, last: int, tokens_per_step: int, log: Callable[[str], None]) -> None:
        self._first_step = self._step = step
        self._last, self._tokens_per_step, self._log = last, tokens_per_step, log
        self._began = self._reported = time.perf_counter()
        self._aside = self._aside_in_all = 0.0
        self._printed = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Over all steps of this process that have been reported."""
        seconds = self._reported - self._began - self._aside_in_all
        return (self._step - self._first_step) * self._tokens_per_step / seconds if seconds > 0 else 0.0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that is not training."""
        began = time.perf_counter()
        yield
        self.add_aside(time.perf_counter() - began)

    def add_aside(self, seconds: float) -> None:
        """Seconds that were not training."""
        self._aside += seconds

    def reached(self, step: int, loss: float) -> dict[str, float]:
        """Report a step; returns its speed."""
        now = time.perf_counter()
        seconds = max(now - self._reported - self._aside, 1e-9)
        speed = (step - self._step) * self._tokens_per_step / seconds
        per_step = seconds / max(step - self._step, 1)
        self._aside_in_all += self._aside
        self._step, self._reported, self._aside = step, now, 0.0
        if now - self._printed >= _SECONDS_BETWEEN_LINES or step == self._last:
            left = int((self._last - step) * per_step)
            self._log(
                f"step {step}/{self._last}: loss {loss:.4f}, {speed:,.0f} tokens/s, "
                f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
            )
            self._printed = now
        return {"tokens_per_second": speed, "seconds_per_step": per_step}


class Means:
    """Mean loss and gradient norm of the steps since they were last read, summed on the device without waiting."""

    def __init__(self, device: torch.device, processes: Processes, advice: str) -> None:
        """`advice`: what to do when the loss is no longer a number."""
        self._loss_sum, self._norm_sum = torch.zeros((), device=device), torch.zeros((), device=device)
        self._processes, self._advice = processes, advice
        self.steps = 0

    def add(self, loss: Tensor, norm: Tensor | None) -> None:
        """One step; the norm is left out where an infinite one is no fault."""
        self._loss_sum += loss
        if norm is not None:
            self._norm_sum += norm
        self.steps += 1

    def read(self, step: int) -> tuple[float, float]:
        """The means over all processes, then starts over. Raises TrainingError if one is no longer a finite number."""
        sums = torch.stack([self._loss_sum, self._norm_sum])
        self._processes.average(sums)
        loss, norm = (sums / max(self.steps, 1)).tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(
                f"the loss is no longer a number at step {step} (loss {loss}, gradient norm {norm}); nothing was saved "
                f"since it was; {self._advice}"
            )
        self._loss_sum.zero_()
        self._norm_sum.zero_()
        self.steps = 0
        return loss, norm
