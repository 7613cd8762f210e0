"""Online DPO: sample answers, let the reward say which is better, take a DPO step on the fresh pairs.

Guo et al. 2024, arXiv:2402.04792, with any preference loss of the catalogue. No stored pairs.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from rlhflab.config import OnlineDpoRun
from rlhflab.core.batch import Batch, PreferenceTree, Shelf, Tree
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Prompt
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.rewards import Reward
from rlhflab.rollout.scoring import tree_logprobs
from rlhflab.train.dpo import learn_pairs
from rlhflab.train.preferences import objective
from rlhflab.train.rollouts import Observer, Sampled, sample_rollouts
from rlhflab.train.state import Saved, Step, TrainState


def train_online_dpo(run: OnlineDpoRun, model: SharedModel, prompts: Sequence[Prompt], *, chat: ChatFormat,
                     reward: Reward, reference: str | None, observe: Observer = lambda sampled: {},
                     role: str = "policy", saved: Saved | None = None) -> Iterator[Step]:
    """Yields after every rollout and its `epochs` optimizer steps on the pairs; the loss is the mean over pairs.

    A prompt whose answers all score the same gives no pair. The loss reads log-probs at temperature 1, whatever the
    temperature of the sampling.
    """
    assert run.steps is not None
    goal = objective(run)
    state = TrainState(run.optimizer, [(model.parameters(role), run.optimizer.learning_rate)],
                       total=run.steps * run.epochs, may_have_nothing_to_learn=True, saved=saved)
    rollouts = sample_rollouts(run, model, prompts, state, chat=chat, reward=reward, reference=reference,
                               observe=observe, role=role)
    for number, sampled in enumerate(rollouts, start=state.done):
        preferences = best_and_worst(sampled)
        shelf = Shelf()
        logprobs = tree_logprobs(model, [each.tree for each in preferences], role=reference,
                                 micro_tokens=run.micro_tokens, shelf=shelf) if goal.has_reference else None
        stored = partial(of_trees, logprobs) if logprobs is not None else None
        for _ in range(run.epochs):
            learn_pairs(run, goal.loss_of, model, preferences, stored, state, role=role, reference=reference,
                        shelf=shelf)
            state.optimize()
        metrics = {**sampled.metrics, "pairs": float(len(preferences))}
        yield state.finish_step(metrics)._replace(number=number + 1)


def of_trees(logprobs: Sequence[Tensor], items: Sequence[int], batch: Batch) -> Tensor:
    """Those of the trees number `items`, one after the other on the device of their batch."""
    return torch.cat([logprobs[i] for i in items]).to(batch.tokens.device)


def best_and_worst(sampled: Sampled) -> list[PreferenceTree]:
    """A pair of each tree: its answers with the highest and the lowest score, in the order they were sampled."""
    pairs = []
    for tree, answers in zip(sampled.trees, sampled.answers_of_trees(), strict=True):
        score = sampled.score[answers]
        best, worst = int(score.argmax()), int(score.argmin())
        if score[best] > score[worst]:
            first, second = sorted((best, worst))
            pairs.append(PreferenceTree(
                tree=Tree(prompt=tree.prompt, answers=(tree.answers[first], tree.answers[second])),
                chosen=(int(best == second),), rejected=(int(worst == second),), strength=(1.0,)))
    return pairs
