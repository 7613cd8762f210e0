"""Many adapters in one forward pass, each row with its own amount of each: W x + sum over adapters of s (B A x).

The factors of all adapters that are held lie side by side, so that a layer costs two products whatever rows want, and
a row's amounts are a vector over the ranks between them. Exact: no weight is averaged or rounded, and an amount of 0
adds 0. Plain LoRA and rsLoRA; DoRA scales the whole layer and does not add up. Axes: b rows, t tokens, n adapters held,
r ranks of all of them, i inputs, o outputs of a layer.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhflab.core.products import linear
from rlhflab.errors import ModelError
from rlhflab.model.adapters import ADAPTER, scaling
from rlhflab.model.folded import forwards
from rlhflab.model.shared import SharedModel

HELD = 8
"""Adapters kept side by side though no row wants them now, so that coming and going costs no copy."""


class Pair(NamedTuple):
    """The two factors of one layer, in the dtype of the base; the adapter's scaling is in `up`."""

    down: Float[Tensor, "k i"]
    up: Float[Tensor, "k o"]
    """B transposed."""


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class Factors:
    """An adapter as it is read: equal to itself alone."""

    digest: str
    """What the caller knows it by."""
    layers: Mapping[str, Pair]
    """By the layer's name in the decoder, such as `layers.0.mlp.up_proj`."""
    rank: int


Amounts = Mapping[Factors, float]
"""How much of each adapter; what is not named is 0."""


def read_factors(model: SharedModel, folder: Path, *, digest: str) -> Factors:
    """The adapter in a folder in PEFT's format. ModelError names what is missing, of another base, or does not fit."""
    lora, tensors = model.stored_adapter(folder)
    if lora.dora:
        raise ModelError(f"{folder}: is a DoRA adapter, which scales whole layers and does not add up with others; "
                         "only LoRA and rsLoRA are served")
    shapes = {name: tuple(layer.weight.shape) for name, layer in linear_layers(model.decoder).items()}
    layers: dict[str, Pair] = {}
    for name, down in tensors.items():
        if ".lora_A." not in name:
            continue
        up, layer = tensors.get(name.replace(".lora_A.", ".lora_B.")), _layer_of(name)
        if up is None or layer not in shapes:
            raise ModelError(f"{folder / ADAPTER}: tensor {name} "
                             f"{'has no lora_B' if up is None else f'fits no layer of {model.base.name}'}")
        (outputs, inputs), rank = shapes[layer], lora.rank
        if down.shape != (rank, inputs) or up.shape != (outputs, rank):
            raise ModelError(f"{folder / ADAPTER}: {layer} has factors of {tuple(down.shape)} and {tuple(up.shape)}; "
                             f"{model.base.name} and rank {rank} need {(rank, inputs)} and {(outputs, rank)}")
        if not (down.isfinite().all() and up.isfinite().all()):
            raise ModelError(f"{folder / ADAPTER}: {layer} holds numbers that are not finite")
        dtype = model.unembedding.dtype
        layers[layer] = Pair(down.to(dtype), (up.float() * scaling(lora)).T.contiguous().to(dtype))
    if len(tensors) != 2 * len(layers) or not layers:
        raise ModelError(f"{folder / ADAPTER}: holds {len(tensors)} tensors, of which {2 * len(layers)} are pairs of "
                         "lora_A and lora_B; there must be no others")
    return Factors(digest=digest, layers=layers, rank=lora.rank)


def linear_layers(decoder: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the blocks, by name."""
    return {name: layer for name, layer in decoder.named_modules()
            if isinstance(layer, nn.Linear) and name.startswith("layers.")}


def _layer_of(name: str) -> str:
    return "layers." + name.partition(".layers.")[2].partition(".lora_A.")[0]


class Mixer:
    """Owns the factors side by side, and the amounts of the rows that are read now."""

    def __init__(self, decoder: nn.Module) -> None:
        self.layers = linear_layers(decoder)
        weight = next(iter(self.layers.values())).weight
        self.dtype, self.device = weight.dtype, weight.device
        self.held: tuple[Factors, ...] = ()
        self._pairs: dict[str, tuple[Pair, Tensor]] = {}
        """Of each layer that an adapter is in: factors side by side, and the place in `held` of each rank."""
        self._amounts: Float[Tensor, "b n"] | None = None
        self._spread: dict[int, Float[Tensor, "b r"]] = {}
        """Amounts by rank, for each list of places; most layers share one."""

    def aim_at(self, rows: Sequence[Amounts]) -> None:
        """Let the next forward passes read these rows; what they want is held from now on."""
        wanted = dict.fromkeys(factors for amounts in rows for factors in amounts)
        if not wanted:
            self._amounts = None
            return
        if not wanted.keys() <= set(self.held):
            others = [factors for factors in self.held if factors not in wanted]
            self._hold((*wanted, *others[:max(0, HELD - len(wanted))]))
        self._amounts = torch.tensor([[amounts.get(factors, 0.0) for factors in self.held] for amounts in rows],
                                     dtype=self.dtype, device=self.device)
        self._spread = {}

    def _hold(self, chosen: tuple[Factors, ...]) -> None:
        self.held, self._pairs = chosen, {}
        shared: dict[tuple[int, ...], Tensor] = {}
        for name in self.layers:
            here = [(place, factors.layers[name]) for place, factors in enumerate(chosen) if name in factors.layers]
            if here:
                places = tuple(place for place, pair in here for _ in range(len(pair.down)))
                index = shared.setdefault(places, torch.tensor(places, device=self.device))
                self._pairs[name] = Pair(torch.cat([pair.down for _, pair in here]),
                                         torch.cat([pair.up for _, pair in here])), index

    @contextmanager
    def mixing(self) -> Iterator[None]:
        """Context in which the layers add what the rows want. Only without gradients."""
        with forwards({layer: partial(self._forward, name, vars(layer).get("forward") or partial(_plain, layer))
                       for name, layer in self.layers.items()}):
            yield

    def _forward(self, name: str, plain: Callable[[Tensor], Tensor], x: Float[Tensor, "b t i"]) -> Tensor:
        result = plain(x)
        if self._amounts is None or name not in self._pairs:
            return result
        (down, up), places = self._pairs[name]
        if id(places) not in self._spread:
            self._spread[id(places)] = self._amounts[:, places]
        inner = linear(x, down) * self._spread[id(places)][:, None]
        return torch.addmm(result.flatten(0, -2), inner.flatten(0, -2), up).view(result.shape)


def _plain(layer: nn.Linear, x: Tensor) -> Any:
    return linear(x, layer.weight, layer.bias) if type(layer) is nn.Linear else nn.Linear.forward(layer, x)


def drop_zeros(amounts: Iterable[tuple[Factors, float]]) -> dict[Factors, float]:
    """Amounts of the same adapter added up, without those that are 0."""
    total: dict[Factors, float] = {}
    for factors, amount in amounts:
        total[factors] = total.get(factors, 0.0) + amount
    return {factors: amount for factors, amount in total.items() if amount}
