"""Writing one token a row: keys and values in memory that is allocated once, and the attention over them.

Keys lie there transposed, since a product reads them so at twice the speed. Axes: r rows, c columns of that memory, h
query heads, g key heads, k width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

from rlhflab.model.attention import attend

DECODING = "rlhflab-decoding"
"""Name under which transformers finds `attend_decoding`."""


class Slots(Cache):
    """Keys and values of the rows being written: each row has a slot, and its token at position p lies in column p.

    So a row may enter, leave or move without the others, and nothing is ever allocated again.
    """

    def __init__(self, like: Cache, *, slots: int, columns: int) -> None:
        read: list[Any] = like.layers
        first: Tensor = read[0].keys
        layers, (_, heads, _, width) = len(read), first.shape
        # Zeros: what is never written is masked, but 0 x NaN would still be NaN.
        self.keys: Float[Tensor, "l r g k c"] = first.new_zeros(layers, slots, heads, width, columns)
        self.values: Float[Tensor, "l r g c k"] = first.new_zeros(layers, slots, heads, columns, width)
        self.aim = _Aim(columns, device=first.device)
        super().__init__(layers=[_SlotLayer(*each, self.aim) for each in zip(self.keys, self.values, strict=True)])

    def branch(self, prompts: Cache, chosen: Int[Tensor, " n"], *, at: int) -> None:
        """Copy the chosen prompts of a prefill into the slots from `at` on."""
        end = at + len(chosen)
        layer: Any
        for keys, values, layer in zip(self.keys, self.values, prompts.layers, strict=True):
            columns = min(layer.keys.shape[2], values.shape[2])
            keys[at:end, :, :, :columns] = layer.keys[chosen, :, :columns].transpose(2, 3)
            values[at:end, :, :columns] = layer.values[chosen, :, :columns]

    def move(self, source: int, target: int, *, columns: int) -> None:
        """Copy the first `columns` of one slot over those of another."""
        self.keys[:, target, :, :, :columns] = self.keys[:, source, :, :, :columns]
        self.values[:, target, :, :columns] = self.values[:, source, :, :columns]

    def aim_at(self, position: Int[Tensor, " r"], *, columns: int) -> Bool[Tensor, "r 1 1 c"]:
        """Let the next token of the first r slots be written at `position`; what each of them may see of `columns`."""
        return self.aim.at(position, columns)


class _Aim:
    """Where the layers write the next token and how far they read, the same for all of them."""

    def __init__(self, columns: int, *, device: torch.device) -> None:
        self.column = torch.arange(columns, device=device)
        self.columns = 0
        self.row = self.position = torch.empty(0, dtype=torch.long, device=device)

    def at(self, position: Int[Tensor, " r"], columns: int) -> Bool[Tensor, "r 1 1 c"]:
        self.row, self.position, self.columns = torch.arange(len(position), device=position.device), position, columns
        return (self.column[:columns] <= position[:, None])[:, None, None]


class _SlotLayer(DynamicLayer):
    """Keys and values of a layer, views of the memory."""

    def __init__(self, keys: Float[Tensor, "r g k c"], values: Float[Tensor, "r g c k"], aim: _Aim) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self.aim = aim

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one new column a row; returns views of the columns to read, keys transposed."""
        assert self.keys is not None and self.values is not None
        row, position, columns = self.aim.row, self.aim.position, self.aim.columns
        self.keys[row, :, :, position] = key_states[:, :, 0]
        self.values[row, :, position] = value_states[:, :, 0]
        return self.keys[:len(row), :, :, :columns], self.values[:len(row), :, :columns]


def attend_decoding(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                    **options: Any) -> tuple[Tensor, None]:
    """The attention of one new token a row over `Slots`: (r, h, 1, k), (r, g, k, c), (r, g, c, k) -> (r, 1, h, k).

    The h / g heads that share a key are the rows of one product, so it is read once for all of them and never copied.
    Longer queries are a prefill.
    """
    if query.shape[2] > 1 or attention_mask is None:
        return attend(module, query, key, value, attention_mask, **options)
    r, h, _, k = query.shape
    g, c = value.shape[1:3]
    rows = (query * options["scaling"]).reshape(r * g, h // g, k)
    scores = torch.bmm(rows, key.reshape(r * g, k, c)).view(r, h, 1, c)
    probability = scores.masked_fill(~attention_mask, float("-inf")).softmax(-1)
    states = torch.bmm(probability.view(r * g, h // g, c), value.reshape(r * g, c, k))
    return states.view(r, 1, h, k), None


@contextmanager
def attending(decoder: nn.Module, name: str = DECODING) -> Iterator[None]:
    """Context in which the decoder attends by the function that transformers knows as `name`."""
    config: Any = decoder.config
    before, config._attn_implementation = config._attn_implementation, name
    try:
        yield
    finally:
        config._attn_implementation = before


AttentionInterface.register(DECODING, attend_decoding)
