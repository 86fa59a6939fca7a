"""Speeds that were measured on GPUs, for offers with no history of their own: (card, precision, size) → time per step.

The step model is right about how a step grows with a model's size, and wrong about how fast a card gets through it. One
measured run corrects it for its card, and, with wider bounds, for cards of the same chip.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from crucible.catalog.offers import Offer, Precision
from crucible.config import TrainConfig
from crucible.estimate.needs import Needs, needs_of


@dataclass(frozen=True)
class MeasuredSpeed:
    """One measured run. Seconds per step, from the fastest to the slowest measurement."""

    gpu: str
    same_chip: tuple[str, ...]
    """Other cards of this chip, as the catalog names them."""
    precision: Precision
    compiled: bool
    preset: str
    rows: int
    """Of a step."""
    vocab_size: int
    fastest: float
    slowest: float
    versions: str

    @property
    def seconds_per_step(self) -> float:
        return math.sqrt(self.fastest * self.slowest)

    def needs(self) -> Needs:
        """Of the measured run."""
        changes = {"batch_size": self.rows, "gradient_accumulation_steps": 1, "compile": self.compiled}
        return needs_of(TrainConfig.preset(self.preset, **changes), self.vocab_size)


MEASURED = (
    # 411,000 to 453,000 tokens per second. nanoGPT's own loop took 26.6 ms in the same call.
    MeasuredSpeed("H200", ("H100",), "bfloat16", True, "gpt2-124m", 12, 50257, 0.0271, 0.0299, "torch 2.11"),
)


@dataclass(frozen=True)
class Correction:
    """What a measured run says of the step model on a card."""

    factor: float
    """Measured over modelled seconds."""
    uncertainty: float
    """The corrected time may be wrong by this factor either way."""
    detail: str


def measured_correction(
    needs: Needs, offer: Offer, precision: Precision, model: Callable[[Needs, Offer, Precision], float | None]
) -> Correction | None:
    """For the offer's card in this precision, compiled or not as in `needs`; None where nothing was measured."""
    for entry in MEASURED:
        if (entry.precision, entry.compiled) != (precision, needs.config.compile):
            continue
        if offer.gpu not in (entry.gpu, *entry.same_chip):
            continue
        same_card = offer.gpu == entry.gpu
        measured_needs = entry.needs()
        modelled = model(measured_needs, replace(offer, gpus=1), precision)
        if modelled is None:
            return None
        factor = entry.seconds_per_step / modelled
        like = _shape(needs.config) == _shape(measured_needs.config)
        tokens = entry.rows * measured_needs.config.block_size
        detail = (
            f"{entry.preset} took {1e3 * entry.fastest:.1f} to {1e3 * entry.slowest:.1f} ms for {tokens:,} tokens on "
            f"one {entry.gpu} ({entry.precision}, {entry.versions})"
        )
        return Correction(factor, (1.2 if like else 1.4) * (1.0 if same_card else 1.1), detail)
    return None


def _shape(config: TrainConfig) -> tuple[int, ...]:
    return config.n_layer, config.n_head, config.n_embd, config.block_size
