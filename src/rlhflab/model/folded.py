"""A role's adapter folded into a scratch copy of the weights it adapts, for decoding. The base is never written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import nn

from rlhflab.model.roles import lora_layers, merged_weight


@contextmanager
def folded(model: nn.Module, adapters: Sequence[str]) -> Iterator[None]:
    """Context in which the layers of `adapters` are one product with W + scaling B A, in the dtype of the base.

    Only one adapter is folded: of a stack, a sum of rounded sums would be another number than the trainer's. Costs the
    memory of the adapted weights and the time of reading them once.
    """
    layers = list(lora_layers(model, adapters[0]).values()) if len(adapters) == 1 else []
    before = [vars(layer)["forward"] for layer in layers]
    for layer in layers:
        vars(layer)["forward"] = partial(nn.functional.linear, weight=merged_weight(layer, adapters[0]),
                                         bias=layer.base_layer.bias)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            vars(layer)["forward"] = forward
