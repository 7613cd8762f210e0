"""Sampling answers: one prefill a prompt, branched to its samples, finished rows dropped.

No reward here, and no trainer: a role, prompts and seeds go in, tokens and their log-probs come out. Axes: r rows
(one an answer being written), c columns of the key-value cache, v vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from rlhflab.core.batch import micro_batches
from rlhflab.model.shared import SharedModel

ROWS = 128
"""Answers written at one time."""


class Generation(NamedTuple):
    """One sampled answer."""

    token_ids: tuple[int, ...]
    """With the end token, where it stopped by itself."""
    logprobs: tuple[float, ...]
    """Of each token under softmax(logits / temperature); of a greedy answer under softmax(logits)."""
    finish: Literal["stop", "length"]


def generate(model: SharedModel, prompts: Sequence[Sequence[int]], *, role: str | None,
             seeds: Sequence[Sequence[int | None]], max_new_tokens: int, stop_ids: Sequence[int],
             temperature: float = 1.0, rows: int = ROWS,
             advance: Callable[[int], None] = lambda answers: None) -> list[list[Generation]]:
    """`len(seeds[i])` answers to prompt i, each drawn with its own seed, whatever batch it is written in.

    The seed None takes the most likely token every time. `advance` is told how many answers were finished. An answer
    ends at the first of `stop_ids` or at `max_new_tokens`.
    """
    answers: list[list[Generation]] = [[] for _ in prompts]
    lengths = [len(prompt) for prompt in prompts]
    widest = max(len(each) for each in seeds)
    per_group = max(1, rows // max(1, widest))
    for similar in micro_batches(lengths, per_group * max(lengths)):
        for start in range(0, len(similar), per_group):
            group = similar[start:start + per_group]
            writer = _Writer(model, [prompts[i] for i in group], [seeds[i] for i in group],
                             max_new_tokens=max_new_tokens, stop_ids=stop_ids, temperature=temperature)
            with model.writing(role):
                written = writer.write()
            for i, row_owner in zip(group, range(len(group)), strict=True):
                answers[i] = [g for owner, g in zip(writer.owner, written, strict=True) if owner == row_owner]
            advance(len(written))
    return answers


class _Writer:
    """Writes the answers to a group of prompts of similar length together."""

    def __init__(self, model: SharedModel, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int | None]], *,
                 max_new_tokens: int, stop_ids: Sequence[int], temperature: float) -> None:
        self.model = model
        self.prompts = prompts
        self.owner = [i for i, each in enumerate(seeds) for _ in each]
        """Prompt of each answer."""
        self.max_new_tokens = max_new_tokens
        self.stop_ids = torch.tensor(sorted(set(stop_ids)), device=model.device)
        self.temperature = temperature
        flat = [seed for each in seeds for seed in each]
        self.greedy = torch.tensor([seed is None for seed in flat], device=model.device)
        self.uniform = torch.stack([_uniform(seed or 0, max_new_tokens) for seed in flat]).to(model.device)
        """One number in [0, 1) for each answer and place, from the answer's own seed: (r, max_new_tokens)."""

    def write(self) -> list[Generation]:
        hidden, cache, visible = self._prefill()
        owner = torch.tensor(self.owner, device=self.model.device)
        cache.batch_select_indices(owner)
        hidden, visible = hidden[owner], visible[owner]
        position = visible.sum(-1)
        row = torch.arange(len(owner), device=self.model.device)  # answers still being written
        tokens = torch.zeros(len(owner), self.max_new_tokens, dtype=torch.long, device=self.model.device)
        logprobs = torch.zeros(tokens.shape, device=self.model.device)
        length = torch.zeros(len(owner), dtype=torch.long, device=self.model.device)
        stopped = torch.zeros(len(owner), dtype=torch.bool, device=self.model.device)
        for step in range(self.max_new_tokens):
            logits = torch.nn.functional.linear(hidden, self.model.unembedding).float()
            token, logprob = draw(logits, self.uniform[row, step], temperature=self.temperature)
            if self.greedy.any():
                best, best_logprob = most_likely(logits)
                token = torch.where(self.greedy[row], best, token)
                logprob = torch.where(self.greedy[row], best_logprob, logprob)
            tokens[row, step], logprobs[row, step], length[row] = token, logprob, step + 1
            stopped[row] = torch.isin(token, self.stop_ids)
            going = (~stopped[row]).nonzero().squeeze(-1)
            if len(going) == 0 or step + 1 == self.max_new_tokens:
                break
            if len(going) < len(row):
                cache.batch_select_indices(going)
                row, visible, position, token = row[going], visible[going], position[going], token[going]
            visible = torch.cat([visible, visible.new_ones(len(row), 1)], dim=1)
            hidden = self._decode(token, position, visible, cache)
            position = position + 1
        return [Generation(tuple(ids[:n]), tuple(values[:n]), "stop" if stop else "length")
                for ids, values, n, stop in zip(tokens.tolist(), logprobs.tolist(), length.tolist(), stopped.tolist(),
                                                strict=True)]

    def _prefill(self) -> tuple[Float[Tensor, "p d"], Cache, Bool[Tensor, "p c"]]:
        """Last hidden state of each prompt, its keys and values, and which of their columns hold a token."""
        width = max(len(prompt) for prompt in self.prompts)
        tokens = torch.zeros(len(self.prompts), width, dtype=torch.long)
        visible = torch.zeros(len(self.prompts), width, dtype=torch.bool)
        for i, prompt in enumerate(self.prompts):
            tokens[i, :len(prompt)] = torch.tensor(prompt)
            visible[i, :len(prompt)] = True
        tokens, visible = tokens.to(self.model.device), visible.to(self.model.device)
        column = torch.arange(width, device=self.model.device)
        cache = Cache(layer_class_to_replicate=partial(_RoomyLayer, room=self.max_new_tokens))  # type: ignore[arg-type]
        # Padding is on the right, so the causal mask alone keeps it out of every real token's sight.
        mask = (column[None, :] <= column[:, None]).expand(len(self.prompts), 1, width, width)
        hidden = self.model.decoder(input_ids=tokens, attention_mask=mask, position_ids=column[None].expand_as(tokens),
                                    past_key_values=cache, use_cache=True).last_hidden_state
        return hidden[torch.arange(len(self.prompts)), visible.sum(-1) - 1], cache, visible

    def _decode(self, token: Int[Tensor, " r"], position: Int[Tensor, " r"], visible: Bool[Tensor, "r c"],
                cache: Cache) -> Float[Tensor, "r d"]:
        states: Tensor = self.model.decoder(
            input_ids=token[:, None], attention_mask=visible[:, None, None], position_ids=position[:, None],
            past_key_values=cache, use_cache=True).last_hidden_state
        return states[:, 0]


class _RoomyLayer(DynamicLayer):
    """Keys and values of a layer with room for the answer, so that a new token is written and nothing is copied."""

    def __init__(self, *, room: int) -> None:
        super().__init__()
        self.room = room
        self.used = 0
        """Columns that hold a token; `keys` and `values` have more."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new columns; returns views of all that are used."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = (states.new_empty(*states.shape[:2], states.shape[2] + self.room, states.shape[3])
                                      for states in (key_states, value_states))
        assert self.keys is not None and self.values is not None
        end = self.used + key_states.shape[2]
        self.keys[:, :, self.used:end] = key_states
        self.values[:, :, self.used:end] = value_states
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Columns that hold a token."""
        return self.used


BLOCK = 256
"""Vocabulary entries whose probabilities are summed first, so that the running sum is over v / BLOCK numbers."""


def draw(logits: Float[Tensor, "r v"], uniform: Float[Tensor, " r"], *,
         temperature: float) -> tuple[Int[Tensor, " r"], Float[Tensor, " r"]]:
    """A token and its log-prob for each row, by inverting the cumulative distribution at `uniform`.

    A draw is a function of the row's logits and its own number, so it does not depend on the other rows. The
    distribution is inverted in two levels: first the block of the vocabulary, then the token within it.
    """
    logits = logits / temperature if temperature != 1 else logits
    highest = logits.amax(-1, keepdim=True)
    weight = torch.nn.functional.pad((logits - highest).exp_(), (0, -logits.shape[-1] % BLOCK))
    weight = weight.view(len(logits), -1, BLOCK)
    blocks = weight.sum(-1).cumsum(-1)
    total = blocks[:, -1:]
    goal = uniform[:, None] * total
    block = torch.searchsorted(blocks, goal, right=True).clamp(max=blocks.shape[1] - 1)
    before = torch.where(block > 0, blocks.gather(-1, (block - 1).clamp(min=0)), 0.0)
    within = weight[torch.arange(len(logits), device=logits.device), block[:, 0]].cumsum(-1)
    place = torch.searchsorted(within, goal - before, right=True).clamp(max=BLOCK - 1)
    token = (block * BLOCK + place).clamp(max=logits.shape[-1] - 1)
    logprob = logits.gather(-1, token) - highest - total.log()
    return token.squeeze(-1), logprob.squeeze(-1)


def most_likely(logits: Float[Tensor, "r v"]) -> tuple[Int[Tensor, " r"], Float[Tensor, " r"]]:
    """The most likely token of each row and its log-prob."""
    highest, token = logits.max(-1)
    return token, highest - logits.logsumexp(-1)


def _uniform(seed: int, n: int) -> Float[Tensor, " n"]:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed))
