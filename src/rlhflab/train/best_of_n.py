"""Best-of-n fine-tuning: sample n answers a prompt, keep the one with the highest reward, learn it as in SFT.

RAFT (Dong et al. 2023, arXiv:2304.06767), also known as rejection sampling. The reference only measures the KL.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from rlhflab.config import BestOfNRun
from rlhflab.core.batch import Tree
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Prompt
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.rewards import Reward
from rlhflab.train.rollouts import Observer, Sampled, sample_rollouts
from rlhflab.train.sft import imitate
from rlhflab.train.state import Saved, Step, TrainState


def train_best_of_n(run: BestOfNRun, model: SharedModel, prompts: Sequence[Prompt], *, chat: ChatFormat, reward: Reward,
                    reference: str | None, observe: Observer = lambda sampled: {}, role: str = "policy",
                    saved: Saved | None = None) -> Iterator[Step]:
    """Yields after every rollout and its `epochs` optimizer steps on the kept answers."""
    assert run.steps is not None
    state = TrainState(run.optimizer, [(model.parameters(role), run.optimizer.learning_rate)],
                       total=run.steps * run.epochs, saved=saved)
    rollouts = sample_rollouts(run, model, prompts, state, chat=chat, reward=reward, reference=reference,
                               observe=observe, role=role)
    for number, sampled in enumerate(rollouts, start=state.done):
        kept = best_answers(sampled)
        for _ in range(run.epochs):
            imitate(run, model, only(sampled, kept), state, role=role)
        metrics = {**sampled.metrics, "kept_score": float(sampled.score[kept].mean())}
        yield state.finish_step(metrics)._replace(number=number + 1)


def best_answers(sampled: Sampled) -> Int[Tensor, " t"]:
    """Number of the answer with the highest score of each tree; of equal ones the first."""
    return torch.stack([answers[sampled.score[answers].argmax()] for answers in sampled.answers_of_trees()])


def only(sampled: Sampled, kept: Int[Tensor, " t"]) -> list[Tree]:
    """Each tree with its kept answer alone."""
    return [Tree(prompt=tree.prompt, answers=(tree.answers[int(number - answers[0])],))
            for tree, answers, number in zip(sampled.trees, sampled.answers_of_trees(), kept, strict=True)]
