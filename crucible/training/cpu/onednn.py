"""Linear layers that multiply through oneDNN, where torch's own way is slow (see `gemm`).

Relies on `torch.ops.mkldnn._linear_pointwise`, an operator that torch keeps for its compiler: there is no public way to
choose the library of a float32 product. Checked with torch 2.13. `use_onednn` compares its result with
`functional.linear` first, and leaves the model alone, with a log line, where it is missing or differs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["OneDNNLinear", "onednn_linear", "use_onednn"]


class _OneDNNFunction(torch.autograd.Function):
    """x W' + b through oneDNN in float32, and its gradients, which are matrix products of the same kind."""

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
    product: Tensor = _OneDNNFunction.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return product


class OneDNNLinear(nn.Module):
    """A linear layer with the parameters of another one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return onednn_linear(x, self.weight, self.bias)


def use_onednn(model: nn.Module, log: Callable[[str], None]) -> bool:
    """Replace every linear layer of a model that trains on the CPU in float32; False, and a log line, if it can't."""
    problem = _fault()
    if problem is not None:
        log(f"fast_gemm = 'onednn' does not work with torch {torch.__version__} ({problem}): oneMKL multiplies")
        return False
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, OneDNNLinear(child))
    return True


def _fault() -> str | None:
    """Why the operator cannot be used, or None."""
    x, weight, bias = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3), torch.arange(4.0)
    try:
        product = _multiply(x, weight, bias)
    except (AttributeError, RuntimeError, TypeError) as error:
        return str(error).splitlines()[0]
    return None if torch.allclose(product, functional.linear(x, weight, bias)) else "it gives a wrong product"


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product
