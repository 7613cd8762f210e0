"""x W^T where nothing but speed is chosen: which kernel reads a matrix."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

ROWS = 64
"""Rows for which a packed weight is laid out; it is right for any number."""


def linear(x: Float[Tensor, "*b i"], weight: Float[Tensor, "o i"],
           bias: Float[Tensor, " o"] | None = None) -> Float[Tensor, "*b o"]:
    """X W^T + b, the same numbers as torch's `linear` but for rounding.

    fp32 on a CPU goes to oneDNN, which is mostly 1.1 to 1.4 times as fast as what torch takes where that is MKL on an
    AMD. It knows no gradient, so where autograd looks on it is torch's.
    """
    if x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled() \
            and torch.backends.mkldnn.is_available():
        return onednn_linear(x, weight, bias)
    return nn.functional.linear(x, weight, bias)


def packed(weight: Float[Tensor, "o i"]) -> Tensor:
    """The weight laid out as oneDNN's kernel reads it, for `onednn_linear` alone."""
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
    return laid_out


def packs(weight: Tensor) -> bool:
    """Whether a packed copy of the weight is read faster than itself."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or (
        weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X W^T + b by oneDNN, of a plain or a packed weight."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result
