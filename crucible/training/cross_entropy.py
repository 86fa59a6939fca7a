"""The loss of a large vocabulary without its logits: computed for some tokens at a time, gradients included.

GPT-2's logits are the largest tensor of a step: 12 rows of 1,024 tokens times 50,304 entries take 2.5 GB in float32,
and are written and read several times. Here a part of them exists at a time; its gradients follow at once, as in
Liger's fused kernel (Hsu et al. 2024, arXiv:2410.10989), so nothing of it is kept for the backward pass.

torch 2.13 has `functional.linear_cross_entropy` for this. This version serves all torch versions that Crucible accepts,
is compiled as a part of the model, and uses no operation that has only a non-deterministic kernel.
"""

# ruff: noqa: N803, N806 (shape suffixes as in `model`; N: tokens)

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["chunked_cross_entropy"]

_CHUNKS = 8
_LEAST_TOKENS = 1024
"""Smaller products would leave a GPU idle."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, dtype: torch.dtype) -> Tensor:
        tokens = targets_N.shape[0]
        rows = max(_LEAST_TOKENS, -(-tokens // _CHUNKS))
        x, weight = x_ND.to(dtype), weight_VD.to(dtype)
        entries_V = torch.arange(weight.shape[0], device=weight.device)
        loss = torch.zeros((), dtype=torch.float32, device=x.device)
        gradient_weight = torch.zeros_like(weight_VD)
        gradients_x = []
        for first in range(0, tokens, rows):
            part_ND, targets = x[first : first + rows], targets_N[first : first + rows].unsqueeze(1)
            logits_NV = (part_ND @ weight.t()).float()
            log_sums = logits_NV.logsumexp(1, keepdim=True)
            loss = loss + (log_sums - logits_NV.gather(1, targets)).sum()
            # Not divided by the number of tokens yet: in 16 bit that would lose digits.
            gradient_NV = ((logits_NV - log_sums).exp() - (entries_V == targets).float()).to(dtype)
            gradients_x.append(gradient_NV @ weight)
            gradient_weight = gradient_weight + gradient_NV.t() @ part_ND
        ctx.save_for_backward(torch.cat(gradients_x), gradient_weight)
        ctx.tokens, ctx.x_dtype = tokens, x_ND.dtype
        return loss / tokens

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        gradient_x, gradient_weight = ctx.saved_tensors
        scale = gradients[0] / ctx.tokens
        return gradient_x.to(ctx.x_dtype) * scale, gradient_weight * scale, None, None


def chunked_cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Mean cross-entropy in nats of logits x W' over N tokens; their products in autocast's precision, sums in float32.

    Not for float16, in which the gradients of some thousand tokens may overflow.
    """
    kind = x_ND.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VD.dtype
    loss: Tensor = _ChunkedCrossEntropy.apply(x_ND, weight_VD, targets_N, dtype)  # type: ignore[no-untyped-call]
    return loss
