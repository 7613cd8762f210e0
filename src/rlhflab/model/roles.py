"""How one base model plays several roles: LoRA layers that read the role from one switch.

PEFT owns the layers, their names and their files. Its own `set_adapter` is not used: it flips `requires_grad`, so
that after a switch to a reference the policy would be frozen and the reference would train. Here a role is an
argument, flags are set once, and a layer whose activations are recomputed in the backward pass recomputes them in
the role of its forward pass.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class RoleSwitch:
    """Which role the layers play now. None is the base model."""

    def __init__(self) -> None:
        self.role: str | None = None
        self.recompute = False
        """Whether activations are recomputed in the backward pass: less memory, about a third more time."""
        self.cast: dict[tuple[int, str], tuple[Tensor, Tensor]] | None = None
        """Adapter matrices in the dtype of the base, kept while nothing trains."""

    @contextmanager
    def playing(self, role: str | None) -> Iterator[None]:
        """Play `role` inside the block."""
        before, self.role = self.role, role
        try:
            yield
        finally:
            self.role = before

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No weight changes inside the block, so each adapter matrix is cast once."""
        self.cast = {}
        try:
            yield
        finally:
            self.cast = None


def take_over(model: nn.Module, switch: RoleSwitch) -> None:
    """Let every LoRA layer of `model` read its role from `switch`. Safe to call again after a role is added."""
    for layer in model.modules():
        if isinstance(layer, LoraLinear) and "forward" not in vars(layer):
            vars(layer)["forward"] = partial(_lora_forward, layer, switch)


def recompute_in_role(blocks: nn.ModuleList, switch: RoleSwitch) -> None:
    """Let each block drop its activations and recompute them in the role of its forward pass."""
    for block in blocks:
        vars(block)["forward"] = partial(_block_forward, block.forward, switch)


def _lora_forward(layer: Any, switch: RoleSwitch, x: Tensor) -> Tensor:
    """base(x) + (alpha / rank) x A^T B^T with products in the dtype of `x`, from fp32 master weights.

    PEFT computes the product in fp32 under a bf16 base, which halves the speed on a CPU.
    """
    result: Tensor = layer.base_layer(x)
    role = switch.role
    if role is None or role not in layer.lora_A:
        return result
    down, up = _matrices(layer, switch, role, x.dtype)
    inner = nn.functional.linear(layer.lora_dropout[role](x), down)
    flat = torch.addmm(result.flatten(0, -2), inner.flatten(0, -2), up.T, alpha=layer.scaling[role])
    return flat.view(result.shape)


def _matrices(layer: Any, switch: RoleSwitch, role: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    key = (id(layer), role)
    if switch.cast is not None and key in switch.cast:
        return switch.cast[key]
    pair = layer.lora_A[role].weight.to(dtype), layer.lora_B[role].weight.to(dtype)
    if switch.cast is not None:
        switch.cast[key] = pair
    return pair


def _block_forward(forward: Callable[..., Tensor], switch: RoleSwitch, *args: Any, **kwargs: Any) -> Tensor:
    role = switch.role

    def in_role(*inner: Any, **options: Any) -> Tensor:
        with switch.playing(role):
            return forward(*inner, **options)

    if switch.recompute and torch.is_grad_enabled():
        return checkpoint(in_role, *args, use_reentrant=False, **kwargs)  # type: ignore[no-any-return]
    return forward(*args, **kwargs)
