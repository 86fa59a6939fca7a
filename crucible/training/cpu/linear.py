"""The linear layer, with a second way to multiply on CPUs where torch's first one is slow (see `gemm`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Linear", "onednn_linear", "use_onednn"]


class _OneDNNLinear(torch.autograd.Function):
    """x W' + b through oneDNN in float32, and its gradients, which are matrix products of the same kind.

    Calls an operator that torch has for its compiler; the probe that chooses this way also checks its result.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        (gradient,) = gradients
        gradient_rows = gradient.flatten(0, -2)
        gradient_weight = _multiply(gradient_rows.t(), x.flatten(0, -2).t())
        return _multiply(gradient, weight.t()), gradient_weight, gradient_rows.sum(0) if ctx.has_bias else None


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W' + b with gradients, multiplied by oneDNN."""
    product: Tensor = _OneDNNLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return product


class Linear(nn.Linear):
    """nn.Linear; `onednn` switches the way it multiplies."""

    onednn = False

    def forward(self, input: Tensor) -> Tensor:
        if self.onednn:
            return onednn_linear(input, self.weight, self.bias)
        return functional.linear(input, self.weight, self.bias)


def use_onednn(model: nn.Module) -> None:
    """Switch all linear layers of a model that trains on the CPU in float32."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.onednn = True


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
