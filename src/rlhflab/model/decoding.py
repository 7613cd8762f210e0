"""Writing one token a row: keys and values in memory that is allocated once, and the attention over them.

Axes: r rows, c columns of that memory, h query heads, g key heads, k width of a head.
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
        keys = like.layers[0].keys
        assert keys is not None
        # Zeros: what is never written is masked, but 0 x NaN would still be NaN.
        self.memory: Float[Tensor, "l 2 r g c k"] = keys.new_zeros(
            len(like.layers), 2, slots, keys.shape[1], columns, keys.shape[3])
        self.aim = _Aim(self.memory.shape[3], columns, device=keys.device)
        super().__init__(layers=[_SlotLayer(keys, values, self.aim) for keys, values in self.memory])

    def branch(self, prompts: Cache, chosen: Int[Tensor, " n"], *, at: int) -> None:
        """Copy the chosen prompts of a prefill into the slots from `at` on."""
        for own, layer in zip(self.memory, prompts.layers, strict=True):
            for memory, states in zip(own, (layer.keys, layer.values), strict=True):
                assert states is not None
                width = min(states.shape[2], memory.shape[2])
                memory[at:at + len(chosen), :, :width] = states[chosen, :, :width]

    def move(self, source: int, target: int, *, columns: int) -> None:
        """Copy the first `columns` of one slot over those of another."""
        self.memory[:, :, target, :, :columns] = self.memory[:, :, source, :, :columns]

    def aim_at(self, position: Int[Tensor, " r"], *, columns: int) -> Bool[Tensor, "r 1 1 c"]:
        """Let the next token of the first r slots be written at `position`; what each of them may see of `columns`."""
        return self.aim.at(position, columns)


class _Aim:
    """Where the layers write the next token and how far they read, the same for all of them."""

    def __init__(self, heads: int, columns: int, *, device: torch.device) -> None:
        self.column = torch.arange(columns, device=device)
        self.head = torch.arange(heads, device=device)
        self.rows, self.columns = 0, 0
        self.index = torch.empty(0, dtype=torch.long, device=device)
        """Of the new column of each row and head in memory flattened to (r g c, k)."""

    def at(self, position: Int[Tensor, " r"], columns: int) -> Bool[Tensor, "r 1 1 c"]:
        self.rows, self.columns = len(position), columns
        slot = torch.arange(self.rows, device=position.device)
        self.index = ((slot[:, None] * len(self.head) + self.head) * len(self.column) + position[:, None]).flatten()
        return (self.column[:columns] <= position[:, None])[:, None, None]


class _SlotLayer(DynamicLayer):
    """Keys and values of a layer, views of the memory."""

    def __init__(self, keys: Float[Tensor, "r g c k"], values: Float[Tensor, "r g c k"], aim: _Aim) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True
        self.aim = aim

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one new column a row; returns views of the columns to read."""
        assert self.keys is not None and self.values is not None
        width = key_states.shape[-1]
        for memory, states in ((self.keys, key_states), (self.values, value_states)):
            memory.view(-1, width).index_copy_(0, self.aim.index, states.reshape(-1, width))
        rows, columns = self.aim.rows, self.aim.columns
        return self.keys[:rows, :, :columns], self.values[:rows, :, :columns]


def attend_decoding(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
                    **options: Any) -> tuple[Tensor, None]:
    """The attention of one new token a row, (r, h, 1, k): the h / g heads that share a key stand for positions.

    So each key is read once for all of them, and never copied. Longer queries are a prefill.
    """
    if query.shape[2] > 1:
        return attend(module, query, key, value, attention_mask, **options)
    r, h, _, k = query.shape
    states = nn.functional.scaled_dot_product_attention(
        query.reshape(r, key.shape[1], -1, k), key, value, attn_mask=attention_mask, scale=options["scaling"])
    return states.reshape(r, 1, h, k), None


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
