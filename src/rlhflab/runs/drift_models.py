"""Sides of `rlhflab drift` that a model answers or reads: samples, mean hidden states, token divergences."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from rlhflab.analysis.drift import Reply
from rlhflab.core.batch import Batch, TokenAnswer, Tree
from rlhflab.core.logprobs import token_divergences
from rlhflab.data.types import Prompt
from rlhflab.progress import Progress
from rlhflab.rollout.chat_server import chat_server, sample_server
from rlhflab.rollout.http import authorization, checked_url
from rlhflab.rollout.sampling import answer_seed, sample
from rlhflab.rollout.scoring import read_trees
from rlhflab.runs.drift_sources import Source, prompt_key
from rlhflab.runs.lab import Lab

MICRO_TOKENS = 1024


class Models:
    """Owns the base model, loaded when it is first needed, and an adapter a side."""

    def __init__(self, name: str, *, max_new_tokens: int, temperature: float, progress: Progress) -> None:
        self.name, self.max_new_tokens, self.temperature, self.progress = name, max_new_tokens, temperature, progress
        self._lab: Lab | None = None
        self.roles: dict[str, str | None] = {}
        """By side, the role that answers; None is the base."""

    @property
    def lab(self) -> Lab:
        """The base."""
        if self._lab is None:
            self._lab = Lab.load(self.name, progress=self.progress)
        return self._lab

    def hold(self, source: Source, side: str) -> None:
        """Load the adapter of a side. ModelError where it is of another base."""
        self.roles[side] = None if source.folder is None else side
        if source.folder is not None:
            self.lab.model.load_role(side, source.folder)

    def answer(self, side: str, prompts: Sequence[Prompt], *, samples: int, seed: int) -> list[Reply]:
        """`samples` answers of a side to each prompt, one at temperature 0. `seed` has to be the side's own."""
        greedy = self.temperature == 0
        with self.progress.track(f"answers of {side}", len(prompts) * (1 if greedy else samples)) as bar:
            rollouts = sample(self.lab.model, self.lab.chat, prompts, role=self.roles[side], greedy=greedy,
                              samples=0 if greedy else samples, max_new_tokens=self.max_new_tokens,
                              temperature=self.temperature or 1.0, seed=seed, advance=bar.advance)
        return [Reply(prompt=prompt_key(each.prompt.messages), text=each.text, tokens=each.token_ids)
                for each in rollouts]

    def with_states(self, replies: Sequence[Reply], prompts: Sequence[Prompt]) -> list[Reply]:
        """Each reply with the base's mean last hidden state where its tokens are predicted."""
        model = self.lab.model
        found = read_trees(model, self._trees(replies, prompts), lambda batch: model.hidden(batch, None)[batch.source],
                           per="token", micro_tokens=MICRO_TOKENS)
        return [replace(reply, state=tuple(states.float().mean(0).tolist()))
                for reply, states in zip(replies, found, strict=True)]

    def divergences(self, baseline: Sequence[Reply], current: Sequence[Reply],
                    prompts: Sequence[Prompt]) -> dict[str, list[float]]:
        """By `kl_forward`, `kl_reverse` and `jsd`, the mean nats a token of each prompt."""
        model, (first, second) = self.lab.model, (self.roles["baseline"], self.roles["current"])

        def read(batch: Batch) -> Tensor:
            p, q = (model.hidden(batch, role)[batch.source] for role in (first, second))
            return torch.stack(token_divergences(p, q, model.unembedding), -1)

        by_side = [read_trees(model, self._trees(side, prompts), read, per="token", micro_tokens=MICRO_TOKENS)
                   for side in (baseline, current)]
        means = {"kl_forward": _means([(baseline, by_side[0])], 0), "kl_reverse": _means([(current, by_side[1])], 1),
                 "jsd": _means([(baseline, by_side[0]), (current, by_side[1])], 2)}
        return {name: list(each.values()) for name, each in means.items()}

    def _trees(self, replies: Sequence[Reply], prompts: Sequence[Prompt]) -> list[Tree]:
        chat, by_key = self.lab.chat, {prompt_key(prompt.messages): prompt for prompt in prompts}
        asked = {key: chat.prompt(prompt) for key, prompt in by_key.items()}
        return [Tree(prompt=asked[reply.prompt], answers=(TokenAnswer(ids=reply.tokens or chat.answer(reply.text)),))
                for reply in replies]


def _means(parts: Sequence[tuple[Sequence[Reply], Sequence[Tensor]]], column: int) -> Mapping[str, float]:
    """By prompt, the mean over all tokens of its answers."""
    tokens: dict[str, list[Tensor]] = {}
    for replies, values in parts:
        for reply, each in zip(replies, values, strict=True):
            tokens.setdefault(reply.prompt, []).append(each[:, column])
    return {prompt: float(torch.cat(each).mean()) for prompt, each in tokens.items()}


def ask_server(source: Source, prompts: Sequence[Prompt], *, samples: int, max_new_tokens: int, temperature: float,
               token_env: str | None, seed: int, progress: Progress, retries: int = 2,
               wait: float = 1.0) -> list[Reply]:
    """`samples` answers of a server to each prompt. RunError where it is down or refuses."""
    headers = {} if token_env is None else authorization(token_env, where="--token-env")
    reply = chat_server(checked_url(source.name, where="a side"), str(source.served_as), headers=headers,
                        max_new_tokens=max_new_tokens, sent="a prompt", wanted="answer", retries=retries, wait=wait)
    seeds = [[answer_seed(seed, i, k) for k in range(samples)] for i in range(len(prompts))]
    with progress.track(f"answers of {source.served_as}", len(prompts) * samples) as bar:
        texts = sample_server(reply, prompts, seeds, temperature=temperature, advance=bar.advance)
    return [Reply(prompt=prompt_key(prompt.messages), text=text)
            for prompt, own in zip(prompts, texts, strict=True) for text in own]
