"""Losses without random variation: over the whole split, or over the same few batches every time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from crucible.training.data import EVAL_STREAM, Dataset, SplitName
from crucible.training.micro_batch import largest_divisor
from crucible.training.model import GPT

__all__ = ["EvaluationStopped", "estimate_loss", "full_loss"]

_TOKENS_AT_ONCE = 1 << 15
_TOKENS_AT_ONCE_ON_A_CPU = 1 << 12  # what its cache holds of a small model: 1.6 times as fast
_LOGITS_AT_ONCE = 1 << 26
_LOGITS_OF_AN_ESTIMATE = 1 << 28


class EvaluationStopped(Exception):
    """`stop` returned true before the evaluation was finished."""


def full_loss(
    model: GPT, dataset: Dataset, split: SplitName = "val", *, stop: Callable[[], bool] = lambda: False
) -> float:
    """Mean cross-entropy over every token of a split that has a token before it, in nats per token.

    The split is cut into windows of `block_size` that follow each other, so a token is predicted from at most
    `block_size` tokens before it, on average half of that. In float32; draws no random number; restores the mode.
    Raises EvaluationStopped once `stop` returns true.
    """
    tokens = dataset.split(split)
    block = model.config.block_size
    predicted = tokens.tokens - 1
    device = next(model.parameters()).device
    at_once = _TOKENS_AT_ONCE_ON_A_CPU if device.type == "cpu" else _TOKENS_AT_ONCE
    rows = max(1, min(at_once // block, _LOGITS_AT_ONCE // (block * model.vocab_size)))
    total = 0.0
    with _inference(model):
        start = 0
        while start < predicted:
            if stop():
                raise EvaluationStopped
            length = min(block, predicted - start)  # the last window may be shorter, and then goes alone
            count = min(rows, (predicted - start) // length)
            window = torch.from_numpy(tokens.read(start, count * length + 1)).to(device)
            logits = model(window[:-1].view(count, length))
            total += _sum_of_losses(logits, window[1:])
            start += count * length
    return total / predicted


def estimate_loss(
    model: GPT,
    dataset: Dataset,
    split: SplitName,
    batches: int,
    autocast: AbstractContextManager[Any] | None = None,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> float:
    """Mean loss over `batches` random batches that are the same at every call, in nats per token.

    In the precision of `autocast`, else in float32. Raises EvaluationStopped once `stop` returns true.
    """
    config = model.config
    device = next(model.parameters()).device
    total = 0.0
    with _inference(model), autocast or nullcontext():
        for number in range(batches):
            if stop():
                raise EvaluationStopped
            rows = slice(0, config.batch_size)
            window = dataset.split(split).batch(
                config.seed, EVAL_STREAM, number, rows, config.batch_size, config.block_size
            )
            parts = torch.split(window.to(device), _rows_at_once(model, config.batch_size, device))
            total += sum(float(model(part[:, :-1], part[:, 1:])) for part in parts) / len(parts)
    return total / batches


def _rows_at_once(model: GPT, rows: int, device: torch.device) -> int:
    """All rows of a batch on a CPU; elsewhere a part of them, whose logits have room beside the trained model."""
    if device.type == "cpu":
        return rows
    return largest_divisor(rows, _LOGITS_OF_AN_ESTIMATE // (model.config.block_size * model.vocab_size))


def _sum_of_losses(logits: Tensor, targets: Tensor) -> float:
    losses = functional.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="none")
    return float(losses.double().sum() if losses.device.type != "mps" else losses.sum())  # mps has no float64


@contextmanager
def _inference(model: GPT) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)
