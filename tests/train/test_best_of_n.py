"""Best-of-n fine-tuning keeps the best answer of each prompt and learns it."""

import torch

from rlhflab.core.batch import TokenAnswer, Tree
from rlhflab.model.shared import SharedModel
from rlhflab.train.best_of_n import best_answers, only
from rlhflab.train.rollouts import Sampled
from sampling_runs import Letters, train_tiny


def sampled(score: list[float]) -> Sampled:
    """Three answers to a first prompt and two to a second."""
    trees = [Tree(prompt=(1,), answers=tuple(TokenAnswer(ids=(token,)) for token in tokens))
             for tokens in ((10, 11, 12), (20, 21))]
    nothing = torch.zeros(5)
    return Sampled(number=1, rollouts=(), scores=(), entropy=nothing, trees=trees, owner=torch.arange(5),
                   prompt=torch.tensor([0, 0, 0, 1, 1]), score=torch.tensor(score), engine=nothing, logprob=nothing,
                   reference=nothing, metrics={})


def test_the_best_answer_of_each_prompt_is_kept_and_of_equal_ones_the_first() -> None:
    rollout = sampled([1.0, 3.0, 2.0, 5.0, 5.0])
    kept = best_answers(rollout)
    assert kept.tolist() == [1, 3]
    assert [tree.answers[0].ids for tree in only(rollout, kept)] == [(11,), (20,)]


def test_best_of_n_raises_its_reward(llama: SharedModel) -> None:
    reward = Letters()
    steps = train_tiny(llama, "best_of_n", reward=reward, steps=12, epochs=2)
    proxies = [step.metrics["proxy"] or 0.0 for step in steps]
    assert sum(proxies[-3:]) / 3 > sum(proxies[:3]) / 3 + 1.0
    assert all((step.metrics["kept_score"] or 0.0) > (step.metrics["proxy"] or 0.0) - 1 for step in steps)
    assert steps[-1].state.number == 24
