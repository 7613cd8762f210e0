"""What each token of a batch may see, and an attention for it: on a GPU, and for short rows on a CPU."""

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from rlhflab.core.batch import PROMPT

SHORT = 256
"""Columns up to which the grouped products are used; above, their scores take more memory than they save time."""
ATTENTION = "rlhflab"
"""Name under which transformers finds `attend`."""


def branch_mask(branch: Int[Tensor, "b t"], document: Int[Tensor, "b t"] | None = None) -> Bool[Tensor, "b 1 t t"]:
    """True where a row's token i sees token j: j is not later, and is of the prompt or of i's own branch.

    Padding sees padding, so that no row of the attention is empty (a softmax over nothing is NaN). `document`: where
    several prompts lie in one row, that of each token; none sees another.
    """
    same = branch[:, :, None] == branch[:, None, :]
    prompt = branch[:, None, :] == PROMPT
    answers = branch[:, :, None] > PROMPT
    seen = same | (prompt & answers)
    if document is not None:
        seen &= document[:, :, None] == document[:, None, :]
    return seen.tril()[:, None]


def visibility(branch: Int[Tensor, "b t"], document: Int[Tensor, "b t"] | None = None) -> Tensor | BlockMask:
    """The branch mask as the attention of its device reads it: in blocks on a GPU that can compile, else whole."""
    compiles = branch.is_cuda and importlib.util.find_spec("triton") is not None
    return block_mask(branch, document) if compiles else branch_mask(branch, document)


def block_mask(branch: Int[Tensor, "b t"], document: Int[Tensor, "b t"] | None = None) -> BlockMask:
    """`branch_mask` for FlexAttention (Dong et al. 2024, arXiv:2412.05496): blocks that nothing sees are left out."""
    def sees(row: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        same = branch[row, i] == branch[row, j]
        return (i >= j) & (same | ((branch[row, j] == PROMPT) & (branch[row, i] > PROMPT)))

    def sees_its_own(row: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert document is not None
        return sees(row, head, i, j) & (document[row, i] == document[row, j])

    rows, columns = branch.shape
    return create_block_mask(sees if document is None else sees_its_own, rows, None, columns, columns,
                             device=branch.device)


@cache
def compiled_flex_attention() -> Callable[..., Tensor]:
    """FlexAttention as one kernel for all row lengths. Made once: it takes seconds."""
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return compiled


def grouped_attention(query: Float[Tensor, "b h t k"], key: Float[Tensor, "b g c k"], value: Float[Tensor, "b g c k"],
                      mask: Bool[Tensor, "b 1 t c"], *, scaling: float) -> Float[Tensor, "b h t k"]:
    """softmax(query key^T scaling) value, the h / g heads that share a key in one product.

    Written out because the backward pass of torch's fused CPU kernel is several times slower in bf16 at these sizes.
    """
    b, h, t, k = query.shape
    g, c = key.shape[1:3]
    rows = (query * scaling).reshape(b * g, h // g * t, k)
    scores = torch.bmm(rows, key.reshape(b * g, c, k).transpose(1, 2)).view(b, h, t, c)
    probability = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    return torch.bmm(probability.view(b * g, h // g * t, c), value.reshape(b * g, c, k)).view(b, h, t, k)


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | BlockMask | None,
           **options: Any) -> tuple[Tensor, None]:
    """The attention of every layer: by blocks where the mask comes in blocks, grouped products for short rows in bf16
    on a CPU, torch's fused one elsewhere.
    """
    if isinstance(attention_mask, BlockMask):
        states = compiled_flex_attention()(query, key, value, block_mask=attention_mask, scale=options["scaling"],
                                           enable_gqa=True)
        return states.transpose(1, 2).contiguous(), None
    short = query.shape[2] > 1 and key.shape[2] <= SHORT
    if attention_mask is not None and short and query.device.type == "cpu" and query.dtype == torch.bfloat16:
        states = grouped_attention(query, key, value, attention_mask, scaling=options["scaling"])
        return states.transpose(1, 2).contiguous(), None
    states, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return states, None


AttentionInterface.register(ATTENTION, attend)
