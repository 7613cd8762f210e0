"""How prompts are drawn: which split owns an item of a list, and decks with exact shares. No text of any domain.

Everything is drawn from `Random(text)`, whose seeding is a SHA-512 of the text, so a prompt is the same on every
machine.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from random import Random
from typing import TypeVar, get_args

from rlhflab.data.types import Prompt
from rlhflab.errors import ConfigError
from rlhflab.scenarios.base import Split

T = TypeVar("T")

_SHARE: tuple[Split, ...] = ("train", "rl", "evaluation", "regression", "train", "rl", "evaluation", "train")
"""Which split owns the i-th item of a list, again and again: 3/8 train, 2/8 rl, 2/8 evaluation, 1/8 regression."""

SPARE = 24
"""Twice the prompts after which the shares of any scenario's decks are exact."""


def owned(items: Sequence[T], split: Split) -> list[T]:
    """The items that belong to `split`; every item belongs to exactly one."""
    return [item for i, item in enumerate(items) if _SHARE[i % len(_SHARE)] == split]


def distinct(name: str, split: Split, n: int, *, seed: int, draw: Callable[[int, Random], Prompt]) -> list[Prompt]:
    """`n` different prompts, the i-th drawn by `draw(i, random)`; a smaller `n` gives a prefix of a larger one."""
    if split not in get_args(Split):
        raise ConfigError(f"scenario {name}: no split is called {split!r}; there are {', '.join(get_args(Split))}")
    prompts: list[Prompt] = []
    seen: set[str] = set()
    while len(prompts) < n:
        index = len(prompts)
        random = Random(f"{name}/{split}/{seed}/{index}")
        prompt = draw(index, random)
        while prompt.messages[-1].content in seen:
            prompt = draw(index, random)
        seen.add(prompt.messages[-1].content)
        prompts.append(prompt)
    return prompts


def every_other_open(prompts: Callable[[int], Sequence[Prompt]], n: int) -> list[Prompt]:
    """`n` prompts, every other one open, of the first 2 n and some that `prompts` gives; a quarter of those is open."""
    drawn = prompts(2 * n + SPARE)
    sides = [[prompt for prompt in drawn if prompt.facts["answerable"] is side] for side in (False, True)]
    return [prompt for pair in zip(*sides, strict=False) for prompt in pair][:n]


@lru_cache(maxsize=4096)
def _order(size: int, key: str) -> tuple[int, ...]:
    return tuple(Random(key).sample(range(size), size))


def dealt(deck: Sequence[T], index: int, key: str) -> T:
    """Card `index` of a deck that is shuffled anew each time round: exact shares, and stable under a longer run."""
    return deck[_order(len(deck), f"{key}/{index // len(deck)}")[index % len(deck)]]
