"""Sampling answers: one prefill a prompt, branched to its samples, finished rows dropped.

No reward here, and no trainer: a role, prompts and seeds go in, tokens and their log-probs come out. Axes: r rows
(one an answer being written), c columns of the key-value cache, v vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from rlhflab.core.batch import micro_batches
from rlhflab.model.shared import SharedModel

ROWS = 64
"""Answers written at one time."""


class Generation(NamedTuple):
    """One sampled answer."""

    token_ids: tuple[int, ...]
    """With the end token, where it stopped by itself."""
    logprobs: tuple[float, ...]
    """Of each token under softmax(logits / temperature); at temperature 0, under softmax(logits)."""
    finish: Literal["stop", "length"]


def generate(model: SharedModel, prompts: Sequence[Sequence[int]], *, role: str | None, seeds: Sequence[Sequence[int]],
             max_new_tokens: int, stop_ids: Sequence[int], temperature: float = 1.0, rows: int = ROWS,
             advance: Callable[[int], None] = lambda answers: None) -> list[list[Generation]]:
    """`len(seeds[i])` answers to prompt i, each drawn with its own seed, whatever batch it is written in.

    `temperature` 0 takes the most likely token. `advance` is told how many answers were finished. An answer ends
    at the first of `stop_ids` or at `max_new_tokens`.
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
            with torch.inference_mode(), model.playing(role):
                written = writer.write()
            for i, row_owner in zip(group, range(len(group)), strict=True):
                answers[i] = [g for owner, g in zip(writer.owner, written, strict=True) if owner == row_owner]
            advance(len(written))
    return answers


class _Writer:
    """Writes the answers to a group of prompts of similar length together."""

    def __init__(self, model: SharedModel, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], *,
                 max_new_tokens: int, stop_ids: Sequence[int], temperature: float) -> None:
        self.model = model
        self.prompts = prompts
        self.owner = [i for i, each in enumerate(seeds) for _ in each]
        """Prompt of each answer."""
        self.max_new_tokens = max_new_tokens
        self.stop_ids = torch.tensor(sorted(set(stop_ids)), device=model.device)
        self.temperature = temperature
        self.uniform = torch.stack([_uniform(seed, max_new_tokens) for each in seeds for seed in each]).to(model.device)
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

    def _prefill(self) -> tuple[Float[Tensor, "p d"], DynamicCache, Bool[Tensor, "p c"]]:
        """Last hidden state of each prompt, its keys and values, and which of their columns hold a token."""
        width = max(len(prompt) for prompt in self.prompts)
        tokens = torch.zeros(len(self.prompts), width, dtype=torch.long)
        visible = torch.zeros(len(self.prompts), width, dtype=torch.bool)
        for i, prompt in enumerate(self.prompts):
            tokens[i, :len(prompt)] = torch.tensor(prompt)
            visible[i, :len(prompt)] = True
        tokens, visible = tokens.to(self.model.device), visible.to(self.model.device)
        column = torch.arange(width, device=self.model.device)
        cache = DynamicCache()
        # Padding is on the right, so the causal mask alone keeps it out of every real token's sight.
        mask = (column[None, :] <= column[:, None]).expand(len(self.prompts), 1, width, width)
        hidden = self.model.decoder(input_ids=tokens, attention_mask=mask, position_ids=column[None].expand_as(tokens),
                                    past_key_values=cache, use_cache=True).last_hidden_state
        return hidden[torch.arange(len(self.prompts)), visible.sum(-1) - 1], cache, visible

    def _decode(self, token: Int[Tensor, " r"], position: Int[Tensor, " r"], visible: Bool[Tensor, "r c"],
                cache: DynamicCache) -> Float[Tensor, "r d"]:
        states: Tensor = self.model.decoder(
            input_ids=token[:, None], attention_mask=visible[:, None, None], position_ids=position[:, None],
            past_key_values=cache, use_cache=True).last_hidden_state
        return states[:, 0]


def draw(logits: Float[Tensor, "r v"], uniform: Float[Tensor, " r"], *,
         temperature: float) -> tuple[Int[Tensor, " r"], Float[Tensor, " r"]]:
    """A token and its log-prob for each row, by inverting the cumulative distribution at `uniform`.

    A draw is a function of the row's logits and its own number, so it does not depend on the other rows.
    """
    if temperature == 0:
        token = logits.argmax(-1)
        return token, logits.log_softmax(-1).gather(-1, token[:, None]).squeeze(-1)
    logprob = (logits / temperature).log_softmax(-1)
    cumulative = logprob.exp().cumsum(-1)
    # Scaled by the row's own total, which rounding keeps from being exactly 1.
    token = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True).squeeze(-1)
    token = token.clamp(max=logits.shape[-1] - 1)
    return token, logprob.gather(-1, token[:, None]).squeeze(-1)


def _uniform(seed: int, n: int) -> Float[Tensor, " n"]:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed))
