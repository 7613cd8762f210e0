"""The weights as decoding reads them: an adapter folded in, laid out for the kernel. The base is never written."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from rlhflab.model.roles import lora_layers, merged_weight

ROWS = 64
"""Rows for which a packed weight is laid out; it is right for any number."""


@contextmanager
def folded(decoder: nn.Module, adapters: Sequence[str]) -> Iterator[None]:
    """Context in which a layer that one adapter is on is a single product with W + scaling B A, in the base's dtype.

    A stack of adapters plays as it is. Every other linear layer is packed where `product` packs. Both are scratch
    copies: they cost the memory of these weights and the time of reading them once.
    """
    scratch: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
    bases = set()
    for layer in lora_layers(decoder, adapters[0]).values() if len(adapters) == 1 else ():
        scratch[layer] = product(merged_weight(layer, adapters[0]), layer.base_layer.bias)
        bases.add(layer.base_layer)
    for layer in decoder.modules():
        if type(layer) is nn.Linear and layer not in bases and packs(layer.weight):
            scratch[layer] = product(layer.weight, layer.bias)
    before = {layer: vars(layer).get("forward") for layer in scratch}
    for layer, forward in scratch.items():
        vars(layer)["forward"] = forward
    try:
        yield
    finally:
        for layer, own in before.items():
            if own is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = own


def product(weight: Tensor, bias: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """What takes x to x W^T + b, the same numbers as torch's `linear`.

    In bf16 on a CPU the weight is laid out once as the kernel reads it, which `linear` does in every call: with 64 rows
    that takes a quarter of its time, with 8 rows half.
    """
    if not packs(weight):
        return partial(nn.functional.linear, weight=weight, bias=bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def packs(weight: Tensor) -> bool:
    """Whether `product` lays the weight out anew."""
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and \
        torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
