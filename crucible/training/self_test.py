"""Two seconds on the GPU before the first step: a product whose result is known, and its rate.

A card with broken memory or arithmetic trains without an error and gives wrong weights; one that is throttled costs the
full price for a part of the speed. Both are cheaper to leave than to use.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crucible.config import TrainConfig
from crucible.errors import MachineUnfit
from crucible.training.device import choose_device, choose_precision

__all__ = ["PEAK_TFLOPS", "Card", "peak_tflops", "require_fit_gpu", "self_test"]

PEAK_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100": 989,
    "GH200": 989,
    "A100": 312,
    "A10G": 70,
    "L40S": 362,
    "L4": 121,
    "T4": 65,
}
"""Dense bfloat16 (T4: float16) by the makers' data sheets; PCIe versions of a card reach less."""

_LEAST_SHARE = 0.2
"""Of the peak. A healthy card reaches half of it and more in products of this size, the PCIe versions a third."""
_INNER, _SIDE, _LARGE = 256, 2048, 8192
_CHECK_SECONDS, _RATE_SECONDS = 1.0, 1.0


@dataclass(frozen=True)
class Card:
    """What the test runs on; a fake one serves its tests."""

    name: str
    multiply: Callable[[Tensor, Tensor], Tensor]
    wait: Callable[[], object]
    device: torch.device
    dtype: torch.dtype
    side: int = _SIDE
    large: int = _LARGE


def self_test(card: Card, seconds: tuple[float, float] = (_CHECK_SECONDS, _RATE_SECONDS)) -> float:
    """The card's rate in TFLOP/s. Raises MachineUnfit for a wrong product, or a rate far below the card's peak."""
    check_seconds, rate_seconds = seconds
    # Entries of 1 and -1: every sum of 256 of them is exact in 16 bit, whatever the order.
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randint(2, (card.side, _INNER), generator=generator).float() * 2 - 1 for _ in range(2))
    wanted = (left @ right.t()).to(card.device, card.dtype)
    a, b = left.to(card.device, card.dtype), right.t().contiguous().to(card.device, card.dtype)
    until = time.perf_counter() + check_seconds
    while True:
        wrong = sum((card.multiply(a, b) != wanted).sum() for _ in range(16))
        if count := int(wrong):
            raise MachineUnfit(f"{card.name} multiplies wrongly: {count} of {16 * card.side**2:,} products differ")
        if time.perf_counter() >= until:
            break
    return _rate(card, rate_seconds)


def _rate(card: Card, seconds: float) -> float:
    x = torch.ones(card.large, card.large, device=card.device, dtype=card.dtype)
    card.multiply(x, x)
    card.wait()
    products, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds or not products:
        for _ in range(4):
            card.multiply(x, x)
        card.wait()
        products += 4
    took = time.perf_counter() - began
    rate = 2e-12 * card.large**3 * products / took
    peak = peak_tflops(card.name)
    if peak is not None and rate < _LEAST_SHARE * peak:
        raise MachineUnfit(f"{card.name} is too slow: {rate:.0f} TFLOP/s in matrix products, its peak is {peak}")
    return rate


def require_fit_gpu(config: TrainConfig, local_rank: int, log: Callable[[str], None]) -> None:
    """Test the GPU that this process will train on; does nothing on other devices. Raises MachineUnfit, ConfigError."""
    device = choose_device(config, local_rank)
    if device.type != "cuda":
        return
    half = choose_precision(config, device, log) == torch.float16
    dtype = torch.float16 if half else torch.bfloat16
    card = Card(torch.cuda.get_device_name(device), torch.matmul, lambda: torch.cuda.synchronize(device), device, dtype)
    log(f"self-test of {card.name} passed: {self_test(card):.0f} TFLOP/s in matrix products")
    torch.cuda.empty_cache()


def peak_tflops(name: str) -> int | None:
    """The peak of a card as torch or NVML names it ("NVIDIA H100 80GB HBM3"); None if it is not known."""
    words = name.upper().replace("-", " ").split()
    return next((peak for card, peak in PEAK_TFLOPS.items() if card in words), None)
