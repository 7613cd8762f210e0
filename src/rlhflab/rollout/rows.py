"""The rows of a batch that is being written: prompts that are read a piece at a time, slots that rows enter and leave,
and the step that lets every row read its last token.

No drawing and no queue: `engine` and `live` decide who enters, what is drawn, and when a row is over. Axes: p prompts,
r rows, c columns of the key-value cache, d width.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from rlhflab.model.decoding import Slots
from rlhflab.model.shared import SharedModel


class Written(Protocol):
    """An answer as far as it is written."""

    @property
    def position(self) -> int:
        """Where the last token drawn will stand."""


Answer = TypeVar("Answer", bound=Written)


class Reading:
    """Prompts on their way into a cache of their own."""

    def __init__(self, model: SharedModel, prompts: Sequence[Sequence[int]], *, width: int) -> None:
        """`width`: at least the tokens of the longest; shorter ones are padded on the right."""
        self.model, self.cache, self.done = model, DynamicCache(), 0
        self.tokens: Int[Tensor, "p c"] = torch.tensor([[*each, *[0] * (width - len(each))] for each in prompts],
                                                       device=model.device)
        self.last = torch.tensor([len(each) - 1 for each in prompts], device=model.device)
        self.hidden: Float[Tensor, "p d"] = torch.zeros(len(prompts), model.width, dtype=model.unembedding.dtype,
                                                        device=model.device)
        """Last hidden state of each prompt, once it is read."""

    @property
    def over(self) -> bool:
        """Whether all prompts are read."""
        return self.done == self.tokens.shape[1]

    def go_on(self, columns: int) -> None:
        """Read the next `columns` tokens of each prompt, or what is left of them."""
        start, end = self.done, min(self.done + columns, self.tokens.shape[1])
        prompts, column = len(self.tokens), torch.arange(end, device=self.model.device)
        # Padding is on the right, so the causal mask alone keeps it out of every real token's sight.
        mask = (column <= column[start:, None]).expand(prompts, 1, end - start, end)
        states = self.model.decoder(
            input_ids=self.tokens[:, start:end], attention_mask=mask, use_cache=True, past_key_values=self.cache,
            position_ids=column[None, start:].expand(prompts, -1)).last_hidden_state
        here = ((start <= self.last) & (self.last < end)).nonzero()[:, 0]
        self.hidden[here] = states[here, self.last[here] - start]
        self.done = end


class Rows:
    """Owns the slots. Live answers fill the first of them; a finished one is replaced by the last."""

    def __init__(self, model: SharedModel, *, most: int, columns: int) -> None:
        """`most`: answers written at one time. `columns`: tokens of the longest prompt with its answer."""
        self.model, self.most, self.columns = model, most, columns
        self.slots: Slots | None = None
        self.hidden: Float[Tensor, "r d"] = torch.zeros(most, model.width, dtype=model.unembedding.dtype,
                                                        device=model.device)
        """Last hidden state of each row: it predicts the next token."""
        self.token, self.position = torch.zeros(2, most, dtype=torch.long, device=model.device)

    def enter(self, read: Reading, chosen: Sequence[int], *, at: int) -> None:
        """Fill the slots from `at` on with the chosen of the prompts that were read."""
        if self.slots is None:
            self.slots = Slots(read.cache, slots=self.most, columns=self.columns)
        index = torch.tensor(chosen, device=self.model.device)
        self.slots.branch(read.cache, index, at=at)
        self.hidden[at:at + len(chosen)] = read.hidden[index]

    def leave(self, live: list[Answer], over: Callable[[Answer], bool]) -> list[Answer]:
        """Take those that are over out of `live`, and return them; the last ones move into their slots."""
        assert self.slots is not None
        gone = [i for i, answer in enumerate(live) if over(answer)]
        left, kept = [live[i] for i in gone], len(live) - len(gone)
        last = (i for i in range(kept, len(live)) if i not in gone)
        for free in gone:
            if free < kept:
                mover = next(last)
                self.slots.move(mover, free, columns=live[mover].position)
                live[free] = live[mover]
        del live[kept:]
        return left

    def aim_at(self, tokens: Sequence[int], positions: Sequence[int]) -> None:
        """The last token of each live row and where it stands, for `step`."""
        self.token[:len(tokens)] = torch.tensor(tokens)
        self.position[:len(tokens)] = torch.tensor(positions)
        self.position[len(tokens):] = 0

    def step(self, rows: int, columns: int) -> None:
        """One token through the decoder: from and to tensors that stay where they are, without a wait for the GPU."""
        assert self.slots is not None
        position = self.position[:rows]
        visible = self.slots.aim_at(position, columns=columns)
        self.hidden[:rows] = self.model.decoder(
            input_ids=self.token[:rows, None], attention_mask=visible, position_ids=position[:, None],
            past_key_values=self.slots, use_cache=True).last_hidden_state[:, 0]


def round_up(n: int, step: int, most: int | None = None) -> int:
    """`n` as a multiple of `step`, or `most`: a product of a new shape is compiled first, for ms."""
    up = -(-n // step) * step
    return up if most is None else min(most, up)
