"""How one base model plays several roles: LoRA layers that read the role from one switch.

PEFT owns the layers, their names and their files. Its own `set_adapter` is not used: it flips `requires_grad`, so
that after a switch to a reference the policy would be frozen and the reference would train. Here a role is an
argument, flags are set once, and a layer whose activations are recomputed in the backward pass recomputes them in
the role of its forward pass. A role is one adapter, or one on top of others, whose products add up.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from rlhflab.core.batch import Trunk
from rlhflab.core.products import linear
from rlhflab.errors import ModelError


class Matrices(NamedTuple):
    """One adapter of one layer, in the dtype of the products."""

    down: Float[Tensor, "r i"]
    up: Float[Tensor, "o r"]
    gain: Float[Tensor, " o"] | None
    """DoRA's factor of each output, fp32; None for plain LoRA."""


FusedBlock = Callable[[nn.Module, Sequence[str], Tensor, Mapping[str, Any]], Tensor | None]
"""Takes a block, the adapters it plays, states and transformers' options; None where the block is of another kind."""


class RoleSwitch:
    """Which role the layers play now. None is the base model."""

    def __init__(self) -> None:
        self.role: str | None = None
        self.stacks: dict[str, tuple[str, ...]] = {}
        """The adapters each role is made of, the trained one last."""
        self.first_block: dict[str, int] = {}
        """Number of the first block each adapter is in."""
        self.trunk: Trunk | None = None
        """Of the batch that is read now, where the role shares one."""
        self.depth = 0
        """Blocks below the first that anything trains in: those that a trunk goes through."""
        self.recompute = False
        """Whether activations are recomputed in the backward pass: less memory, about a third more time."""
        self.fused: FusedBlock | None = None
        """Another way of reading a block, where it can be read so."""
        self.cast: dict[tuple[int, str], Matrices] | None = None
        """Adapter matrices in the dtype of the base, kept while nothing trains."""

    @property
    def adapters(self) -> tuple[str, ...]:
        """Those the layers apply now."""
        return () if self.role is None else self.stacks[self.role]

    @contextmanager
    def playing(self, role: str | None) -> Iterator[None]:
        """Play `role` inside the block."""
        before, self.role = self.role, role
        try:
            yield
        finally:
            self.role = before

    @contextmanager
    def sharing(self, trunk: Trunk) -> Iterator[None]:
        """Leave the states below `depth` in `trunk`, or go on from those that lie there, inside the block."""
        below = tuple(adapter for adapter in self.adapters if self.first_block[adapter] < self.depth)
        if trunk.states is None:
            trunk.adapters = below
        fits = self.depth > 0 and trunk.adapters == below
        before, self.trunk = self.trunk, trunk if fits else None
        try:
            yield
        finally:
            self.trunk = before

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No weight changes inside the block, so each adapter matrix is cast once."""
        self.cast = {}
        try:
            yield
        finally:
            self.cast = None


def lora_layers(model: nn.Module, adapter: str | None = None) -> dict[str, Any]:
    """The LoRA layers of `model` by name, or those that `adapter` is in."""
    return {name: layer for name, layer in model.named_modules()
            if isinstance(layer, LoraLayer) and (adapter is None or adapter in layer.lora_A)}


def take_over(model: nn.Module, switch: RoleSwitch) -> None:
    """Let every LoRA layer of `model` read its role from `switch`. Safe to call again after a role is added."""
    for name, layer in lora_layers(model).items():
        if not isinstance(layer.base_layer, nn.Linear) or ".layers." not in name:
            raise ModelError(f"{name} is not a linear layer of the blocks; only those can be adapted")
        if "forward" not in vars(layer):
            vars(layer)["forward"] = partial(_lora_forward, layer, switch)


def take_over_blocks(blocks: nn.ModuleList, switch: RoleSwitch) -> None:
    """Let each block share its trunk, drop its activations and recompute them in the role of its forward pass."""
    for number, block in enumerate(blocks):
        vars(block)["forward"] = partial(_block_forward, partial(_read_block, block, block.forward, switch), switch,
                                         number)


@torch.no_grad()
def start_magnitudes(model: nn.Module, adapter: str) -> None:
    """Let a fresh DoRA adapter be the base exactly. PEFT rounds the magnitudes to the base's dtype, which is not."""
    for layer in lora_layers(model, adapter).values():
        if adapter in layer.lora_magnitude_vector:
            layer.lora_magnitude_vector[adapter].weight.data = _norm(layer, adapter)


@torch.no_grad()
def concatenate(model: nn.Module, parts: Sequence[str], whole: str) -> None:
    """Fill the plain adapter `whole`, of scaling 1, with the sum of `parts`: ranks side by side, scaling in B.

    s_1 B_1 A_1 + s_2 B_2 A_2 = [s_1 B_1, s_2 B_2] [A_1; A_2]. Where a layer lacks a part, its place is 0.
    """
    ranks = {part: next(layer.r[part] for layer in lora_layers(model, part).values()) for part in parts}
    for layer in lora_layers(model, whole).values():
        down, up = layer.lora_A[whole].weight.zero_(), layer.lora_B[whole].weight.zero_()
        place = 0
        for part, rank in ranks.items():
            if part in layer.lora_A:
                down[place:place + rank] = layer.lora_A[part].weight
                up[:, place:place + rank] = layer.scaling[part] * layer.lora_B[part].weight
            place += rank


def added_part(whole: Mapping[str, Tensor], scaling: float, below: Mapping[str, Tensor],
               below_scaling: float) -> dict[str, Tensor]:
    """What `concatenate` put beside `below` in the tensors `whole`, by name; empty where it begins otherwise.

    Layers to which nothing was added are left out.
    """
    above: dict[str, Tensor] = {}
    for name, down in below.items():
        if ".lora_A." in name:
            other, rank = name.replace(".lora_A.", ".lora_B."), len(down)
            if other not in whole or not (torch.equal(whole[name][:rank], down) and torch.equal(
                    scaling * whole[other][:, :rank], below_scaling * below[other])):
                return {}
            if whole[name][rank:].any():
                above |= {name: whole[name][rank:], other: whole[other][:, rank:]}
    return above if whole.keys() == below.keys() else {}


@torch.no_grad()
def merged_weight(layer: Any, adapter: str) -> Float[Tensor, "o i"]:
    """The layer's weight with the adapter folded in, in the base's dtype: a new tensor, the base's stays as it is."""
    weight, gain = _adapted_weight(layer, adapter), _gain(layer, adapter)
    return (weight if gain is None else gain[:, None] * weight).to(layer.base_layer.weight.dtype)


def _lora_forward(layer: Any, switch: RoleSwitch, x: Tensor) -> Tensor:
    """base(x) and what each adapter of the role adds, with products in the dtype of `x` from fp32 master weights.

    PEFT computes the products in fp32 under a bf16 base, which halves the speed on a CPU.
    """
    adapters = [adapter for adapter in switch.adapters if adapter in layer.lora_A]
    if torch.is_grad_enabled() and all(is_a_product(layer, adapter) for adapter in adapters):
        factors = [factors[adapter].weight for adapter in adapters for factors in (layer.lora_A, layer.lora_B)]
        return _LowRankLinear.apply(x, layer.base_layer.weight, layer.base_layer.bias,  # type: ignore[no-any-return]
                                   tuple(layer.scaling[adapter] for adapter in adapters), *factors)
    base = layer.base_layer
    result: Tensor = linear(x, base.weight, base.bias) if type(base) is nn.Linear else base(x)
    for adapter in adapters:
        matrices = _matrices(layer, switch, adapter, x.dtype)
        # Dropout belongs to training: a reference, a score or a sample is never read through it.
        seen = layer.lora_dropout[adapter](x) if torch.is_grad_enabled() else x
        result = (_add_product if matrices.gain is None else _add_dora)(
            layer, result, x, seen, matrices, layer.scaling[adapter])
    return result


def is_a_product(layer: Any, adapter: str) -> bool:
    """Whether the adapter adds x A^T B^T to a layer that is held as it is: no DoRA, no dropout, no 4 bits."""
    return (type(layer.base_layer) is nn.Linear and adapter not in layer.lora_magnitude_vector
            and isinstance(layer.lora_dropout[adapter], nn.Identity))


class _LowRankLinear(torch.autograd.Function):
    """x W^T + bias + sum of s x A^T B^T: the frozen W gets no gradient, each A and B one in its own dtype.

    The same sums as autograd makes of the single products, but the gradient by x is added up in one place by the
    products themselves, and the factors are cast once.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scales: tuple[float, ...],
                *factors: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        cast = [factor.to(x.dtype) for factor in factors]
        result = linear(flat, weight, bias)
        inner = [linear(flat, down) for down in cast[::2]]
        for scale, low, up in zip(scales, inner, cast[1::2], strict=True):
            result.addmm_(low, up.T, alpha=scale)
        ctx.scales = scales
        ctx.save_for_backward(x, weight, *inner, *cast)
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_result: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *saved = ctx.saved_tensors
        inner, cast = saved[:len(ctx.scales)], saved[len(ctx.scales):]
        flat, by_flat = x.flatten(0, -2), by_result.flatten(0, -2)
        by_x = linear(by_flat, weight.T) if ctx.needs_input_grad[0] else None
        by_factors: list[Tensor | None] = []
        for i, (scale, low) in enumerate(zip(ctx.scales, inner, strict=True)):
            down, up = cast[2 * i:2 * i + 2]
            trained = ctx.needs_input_grad[4 + 2 * i]
            by_inner = linear(by_flat, up.T).mul_(scale)
            if by_x is not None:
                by_x.addmm_(by_inner, down)
            by_factors += [None, None] if not trained else [
                (by_inner.T @ flat).float(), (by_flat.T @ low).float().mul_(scale)]
        return by_x if by_x is None else by_x.view(x.shape), None, None, None, *by_factors


def _add_product(layer: Any, result: Tensor, x: Tensor, seen: Tensor, matrices: Matrices, scaling: float) -> Tensor:
    """LoRA: result + scaling x A^T B^T."""
    inner = linear(seen, matrices.down)
    flat = torch.addmm(result.flatten(0, -2), inner.flatten(0, -2), matrices.up.T, alpha=scaling)
    return flat.view(result.shape)


def _add_dora(layer: Any, result: Tensor, x: Tensor, seen: Tensor, matrices: Matrices, scaling: float) -> Tensor:
    """DoRA: result + (g - 1) x W^T + g scaling x A^T B^T, g = magnitude / |W + scaling B A| (arXiv:2402.09353 eq. 5).

    With dropout, `seen` stands for x in both products, as in PEFT.
    """
    assert matrices.gain is not None
    if seen is x:
        plain = result if layer.base_layer.bias is None else result - layer.base_layer.bias
    else:
        plain = nn.functional.linear(seen, dequantize_module_weight(layer.base_layer).to(x.dtype))
    product = nn.functional.linear(nn.functional.linear(seen, matrices.down), matrices.up)
    # The difference from 1 is taken in fp32: bf16 knows only 1 and 1.0078 here.
    return result + (matrices.gain - 1).to(x.dtype) * plain + (scaling * matrices.gain).to(x.dtype) * product


def _matrices(layer: Any, switch: RoleSwitch, adapter: str, dtype: torch.dtype) -> Matrices:
    key = (id(layer), adapter)
    if switch.cast is not None and key in switch.cast:
        return switch.cast[key]
    matrices = Matrices(layer.lora_A[adapter].weight.to(dtype), layer.lora_B[adapter].weight.to(dtype),
                        _gain(layer, adapter))
    if switch.cast is not None:
        switch.cast[key] = matrices
    return matrices


def _gain(layer: Any, adapter: str) -> Float[Tensor, " o"] | None:
    if adapter not in layer.lora_magnitude_vector:
        return None
    gain: Tensor = layer.lora_magnitude_vector[adapter].weight / _norm(layer, adapter)
    return gain


@torch.no_grad()
def _norm(layer: Any, adapter: str) -> Float[Tensor, " o"]:
    """|W + scaling B A| of each output, a constant under the gradient (DoRA, section 4.3)."""
    norm: Tensor = torch.linalg.norm(_adapted_weight(layer, adapter), dim=1)
    return norm


def _adapted_weight(layer: Any, adapter: str) -> Float[Tensor, "o i"]:
    """W + scaling B A, fp32."""
    weight = dequantize_module_weight(layer.base_layer).float()
    return torch.addmm(weight, layer.lora_B[adapter].weight, layer.lora_A[adapter].weight, alpha=layer.scaling[adapter])


def _block_forward(forward: Callable[..., Tensor], switch: RoleSwitch, number: int, states: Tensor, *args: Any,
                   **kwargs: Any) -> Tensor:
    trunk = switch.trunk
    if trunk is not None and trunk.states is not None and number < switch.depth:
        return trunk.states if number == switch.depth - 1 else states
    states = _compute_block(forward, switch, states, *args, **kwargs)
    if trunk is not None and number == switch.depth - 1:
        trunk.states = states
    return states


def _read_block(block: nn.Module, forward: Callable[..., Tensor], switch: RoleSwitch, states: Tensor, *args: Any,
                **kwargs: Any) -> Tensor:
    fused = switch.fused(block, switch.adapters, states, kwargs) if switch.fused and not args else None
    return forward(states, *args, **kwargs) if fused is None else fused


def _compute_block(forward: Callable[..., Tensor], switch: RoleSwitch, *args: Any, **kwargs: Any) -> Tensor:
    role = switch.role

    def in_role(*inner: Any, **options: Any) -> Tensor:
        with switch.playing(role):
            return forward(*inner, **options)

    if switch.recompute and torch.is_grad_enabled():
        return checkpoint(in_role, *args, use_reentrant=False, **kwargs)  # type: ignore[no-any-return]
    return forward(*args, **kwargs)
