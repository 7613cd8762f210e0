"""The weights as decoding reads them: an adapter folded in, laid out for the kernel. The base is never written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from rlhflab.core.products import onednn_linear, packed, packs
from rlhflab.model.roles import lora_layers, merged_weight


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
    with forwards(scratch):
        yield


@contextmanager
def forwards(computed: Mapping[nn.Module, Callable[..., Tensor]]) -> Iterator[None]:
    """Context in which each of these layers computes what is given for it; afterwards as before."""
    before = {layer: vars(layer).get("forward") for layer in computed}
    for layer, forward in computed.items():
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
    """What takes x to x W^T + b, the same numbers as torch's `linear` but for rounding.

    On a CPU the weight is laid out once as the kernel reads it, which `linear` does in every call: in bf16 with 64 rows
    that takes a quarter of its time, with 8 rows half; in fp32 it is twice as fast.
    """
    if not packs(weight):
        return partial(nn.functional.linear, weight=weight, bias=bias)
    return partial(onednn_linear, weight=packed(weight), bias=bias)
