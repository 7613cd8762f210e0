"""A decoder block of Llama's kind as one function of tensors: joint products, and one compilation for all blocks.

For GPUs, where transformers' own block waits for its many small kernels, and off unless `SharedModel.read_fast` asks
for it. The plain twin is transformers' block with the LoRA layers of `rlhflab.model.roles`. Any other kind of block,
DoRA, dropout, 4 bits and writing with a cache are left to that. Axes: b rows, t columns, i inputs, o outputs, r ranks
of all adapters of all layers of a joint product.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import linear, scaled_dot_product_attention, silu

from rlhflab.model.attention import compiled_flex_attention
from rlhflab.model.roles import is_a_product

KINDS = ("LlamaDecoderLayer", "Qwen2DecoderLayer")
"""Blocks that `read_block` computes."""
SHAPES = 64
"""Shapes for which the block may be compiled, before torch goes on without."""
GROUPS = (("self_attn", ("q_proj", "k_proj", "v_proj")), ("self_attn", ("o_proj",)), ("mlp", ("gate_proj", "up_proj")),
          ("mlp", ("down_proj",)))
"""Layers that read the same states, in the order of a block."""


class Joint(NamedTuple):
    """The frozen weights of layers that read the same states, one below the other."""

    weight: Float[Tensor, "o i"]
    bias: Float[Tensor, " o"] | None
    outputs: tuple[int, ...]
    """Of each layer."""


class Frozen(NamedTuple):
    """What a block is made of, without adapters."""

    norms: tuple[Tensor, Tensor]
    joints: tuple[Joint, ...]
    """Of each of `GROUPS`."""
    head: int
    """Width of a head."""
    scaling: float
    epsilon: float


Factors = tuple[tuple[Float[Tensor, "q i"], Float[Tensor, "p q"], float], ...]
"""Of one layer: A, B and the scale of each adapter it has."""


class FusedBlocks:
    """Reads blocks by `read_block`."""

    def __init__(self, *, compiled: bool) -> None:
        self._read = compiled_block() if compiled else read_block
        self._frozen: dict[nn.Module, Frozen | None] = {}

    def __call__(self, block: nn.Module, adapters: Sequence[str], states: Float[Tensor, "b t d"],
                 options: Mapping[str, Any]) -> Float[Tensor, "b t d"] | None:
        """The block's states, or None where it is not one that `read_block` computes. `options`: transformers' own."""
        if options.get("past_key_values") is not None:
            return None
        if block not in self._frozen:
            self._frozen[block] = joined(block)
        frozen = self._frozen[block]
        if frozen is None or (factors := factors_of(block, adapters)) is None:
            return None
        return self._read(states, options["position_embeddings"], options["attention_mask"], frozen, factors)


@cache
def compiled_block() -> Callable[..., Tensor]:
    """`read_block` by kernels of its own, for each shape anew. Made once: a shape takes seconds."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, SHAPES)
    # Policy and reference are compiled apart; rounding where torch's own kernels round keeps them equal.
    return torch.compile(read_block, dynamic=False, options={"emulate_precision_casts": True})


def joined(block: Any) -> Frozen | None:
    """The block's frozen weights; its layers become views of the joint ones. None where it is of another kind."""
    attention = block.self_attn if type(block).__name__ in KINDS else None
    if attention is None or getattr(attention, "sliding_window", None) or attention.config.hidden_act != "silu":
        return None
    layers = [[base_of(layer) for layer in group] for group in grouped(block)]
    if any(type(layer) is not nn.Linear for group in layers for layer in group):
        return None
    return Frozen(norms=(block.input_layernorm.weight, block.post_attention_layernorm.weight),
                  joints=tuple(joint(group) for group in layers),
                  head=attention.head_dim, scaling=attention.scaling, epsilon=block.input_layernorm.variance_epsilon)


@torch.no_grad()
def joint(layers: Sequence[nn.Linear]) -> Joint:
    """The weights of `layers` as one; each keeps a view of its rows, so that nothing is held twice."""
    outputs = tuple(layer.out_features for layer in layers)
    weight = torch.cat([layer.weight.detach() for layer in layers])
    for layer, rows in zip(layers, weight.split(outputs), strict=True):
        layer.weight.data = rows
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    return Joint(weight, torch.cat(biases) if biases else None, outputs)


def factors_of(block: Any, adapters: Sequence[str]) -> tuple[tuple[Factors, ...], ...] | None:
    """The adapters' factors of each layer of each group; None where one of them does more than add a product."""
    found = []
    for group in grouped(block):
        own = [[adapter for adapter in adapters if isinstance(layer, LoraLayer) and adapter in layer.lora_A]
               for layer in group]
        if not all(is_a_product(layer, name) for layer, names in zip(group, own, strict=True) for name in names):
            return None
        found.append(tuple(tuple((layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])
                                 for name in names) for layer, names in zip(group, own, strict=True)))
    return tuple(found)


def grouped(block: Any) -> list[list[Any]]:
    """The linear layers of each of `GROUPS`."""
    return [[getattr(getattr(block, part), name) for name in names] for part, names in GROUPS]


def base_of(layer: Any) -> Any:
    """The layer without its adapters."""
    return layer.base_layer if isinstance(layer, LoraLayer) else layer


def read_block(states: Float[Tensor, "b t d"], rotary: tuple[Tensor, Tensor], mask: Tensor | BlockMask, frozen: Frozen,
               factors: tuple[tuple[Factors, ...], ...]) -> Float[Tensor, "b t d"]:
    """The block of Llama (Touvron et al. 2023, arXiv:2302.13971) with grouped queries, the adapters added."""
    b, t, _ = states.shape
    of_attention, out, of_mlp, down = zip(frozen.joints, factors, strict=True)
    normed = rms_norm(states, frozen.norms[0], frozen.epsilon)
    parts = project(normed, *of_attention).split(of_attention[0].outputs, -1)
    query, key, value = (part.view(b, t, -1, frozen.head).transpose(1, 2) for part in parts)
    query, key = rotated(query, *rotary), rotated(key, *rotary)
    seen = attention(query, key, value, mask, scaling=frozen.scaling)
    states = states + project(seen.transpose(1, 2).reshape(b, t, -1), *out)
    gate, up = project(rms_norm(states, frozen.norms[1], frozen.epsilon), *of_mlp).chunk(2, -1)
    return states + project(silu(gate) * up, *down)


def project(x: Float[Tensor, "b t i"], joint: Joint, factors: Sequence[Factors]) -> Float[Tensor, "b t o"]:
    """X W^T + bias + sum of s x A^T B^T, with one product for all A and one for all B."""
    flat = x.flatten(0, -2)
    result = linear(flat, joint.weight, joint.bias)
    downs = [down for layer in factors for down, _, _ in layer]
    if downs:
        low = linear(flat, torch.cat(downs).to(x.dtype))
        result = torch.addmm(result, low, joint_up(joint, factors).to(x.dtype).T)
    return result.view(*x.shape[:-1], -1)


def joint_up(joint: Joint, factors: Sequence[Factors]) -> Float[Tensor, "o r"]:
    """All s B: in the rows of their layer and the columns of their ranks, with 0 elsewhere."""
    ranks = sum(len(down) for layer in factors for down, _, _ in layer)
    rows, column = [], 0
    for layer, outputs in zip(factors, joint.outputs, strict=True):
        own = [up * scale for _, up, scale in layer]
        part = torch.cat(own, 1) if own else joint.weight.new_zeros(outputs, 0, dtype=torch.float32)
        rows.append(nn.functional.pad(part, (column, ranks - column - part.shape[1])))
        column += part.shape[1]
    return torch.cat(rows)


def rms_norm(states: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """States over their root mean square, in fp32 (Zhang & Sennrich 2019, arXiv:1910.07467)."""
    wide = states.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)).to(states.dtype)


def rotated(states: Float[Tensor, "b h t k"], cosine: Tensor, sine: Tensor) -> Float[Tensor, "b h t k"]:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), the two halves of a head as pairs."""
    first, second = states.chunk(2, -1)
    return states * cosine[:, None] + torch.cat([-second, first], -1) * sine[:, None]


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | BlockMask, *, scaling: float) -> Tensor:
    """By blocks where the mask comes in blocks; a part of the compilation where there is one."""
    if isinstance(mask, BlockMask):
        flex: Any = flex_attention if torch.compiler.is_compiling() else compiled_flex_attention()
        return flex(query, key, value, block_mask=mask, scale=scaling, enable_gqa=True)  # type: ignore[no-any-return]
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
