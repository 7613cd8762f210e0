"""The plain version of every fast path: padded rows, full softmax, naive generation. Slow, and easy to believe."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhflab.core.batch import Tree
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.engine import draw


def plain_hidden(model: SharedModel, ids: Sequence[int], role: str | None) -> Tensor:
    """Last hidden states of one sequence alone: no padding, no mask, no shared prompt: (t, d)."""
    with model.playing(role):
        states: Tensor = model.decoder(input_ids=torch.tensor([list(ids)]), use_cache=False).last_hidden_state
    return states[0]


def plain_logprobs(model: SharedModel, tree: Tree, role: str | None, *, temperature: float = 1.0) -> list[Tensor]:
    """Log-probs of each answer's scored tokens, by a full softmax over prompt + answer, one answer at a time."""
    results = []
    for answer in tree.answers:
        ids = [*tree.prompt, *answer.ids]
        hidden = plain_hidden(model, ids, role)
        logits = torch.nn.functional.linear(hidden, model.unembedding).float() / temperature
        logprobs = logits.log_softmax(-1)[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
        answer_part = logprobs[len(tree.prompt) - 1:]
        results.append(answer_part[torch.tensor(answer.scored or [True] * len(answer.ids))])
    return results


def plain_scores(model: SharedModel, tree: Tree, role: str) -> Tensor:
    """Reward of each answer, read at its last token, one answer at a time: (n,)."""
    head = model.head_parameters(role)[0]
    return torch.stack([(plain_hidden(model, [*tree.prompt, *answer.ids], role)[-1].float() @ head[0])
                        for answer in tree.answers])


def plain_generate(model: SharedModel, prompt: Sequence[int], role: str | None, *, seed: int | None,
                   max_new_tokens: int, stop_ids: Sequence[int],
                   temperature: float = 1.0) -> tuple[list[int], list[float]]:
    """One answer, one token at a time, the whole sequence read again for every token."""
    uniform = torch.rand(max_new_tokens, generator=torch.Generator().manual_seed(seed or 0))
    ids, logprobs = list(prompt), []
    for step in range(max_new_tokens):
        logits = torch.nn.functional.linear(plain_hidden(model, ids, role)[-1:], model.unembedding).float()
        token, logprob = draw(logits, uniform[step:step + 1], temperature=temperature)
        if seed is None:
            token, logprob = logits.argmax(-1), logits.log_softmax(-1).amax(-1)
        ids.append(int(token))
        logprobs.append(float(logprob))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt):], logprobs
