"""Online DPO: sample answers, let the reward say which is better, take a DPO step on the fresh pairs.

Guo et al. 2024, arXiv:2402.04792, with any preference loss of the catalogue. No stored pairs.
"""

from collections.abc import Iterator, Sequence

import torch

from rlhflab.config import OnlineDpoRun
from rlhflab.core.batch import PreferenceTree, Tree, micro_batches, pack, pair_index
from rlhflab.core.preference import PairLoss, answer_logprobs, preference_loss
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Prompt
from rlhflab.errors import ConfigError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.rewards import Reward
from rlhflab.rollout.scoring import tree_logprobs
from rlhflab.train.rollouts import Observer, Sampled, sample_rollouts
from rlhflab.train.state import Saved, Step, TrainState


def train_online_dpo(run: OnlineDpoRun, model: SharedModel, prompts: Sequence[Prompt], *, chat: ChatFormat,
                     reward: Reward, reference: str | None, observe: Observer = lambda rollouts, scores: {},
                     role: str = "policy", saved: Saved | None = None) -> Iterator[Step]:
    """Yields after every rollout and its `epochs` optimizer steps on the pairs; the loss is the mean over pairs.

    A prompt whose answers all score the same gives no pair. The loss reads log-probs at temperature 1, whatever the
    temperature of the sampling.
    """
    assert run.steps is not None
    loss_of = pair_loss_of(run)
    state = TrainState(run.optimizer, [(model.parameters(role), run.optimizer.learning_rate)],
                       total=run.steps * run.epochs, may_have_nothing_to_learn=True, saved=saved)
    rollouts = sample_rollouts(run, model, prompts, state, chat=chat, reward=reward, reference=reference,
                               observe=observe, role=role)
    for number, sampled in enumerate(rollouts, start=state.done):
        preferences = best_and_worst(sampled)
        stored = tree_logprobs(model, [each.tree for each in preferences], role=reference,
                               micro_tokens=run.micro_tokens)
        for _ in range(run.epochs):
            for part in micro_batches([len(each.tree) for each in preferences], run.micro_tokens):
                batch = pack([preferences[i].tree for i in part]).to(model.device)
                policy = model.logprobs(batch, role).logprob
                answers = answer_logprobs(policy, torch.cat([stored[i] for i in part]).to(model.device), batch.owner,
                                          batch.answers)
                chosen, rejected = (side.to(model.device) for side in pair_index([preferences[i] for i in part]))
                loss = loss_of(answers.of(chosen), answers.of(rejected))
                (loss.each.sum() / len(preferences)).backward()
                state.note(loss.metrics)
            state.optimize()
        metrics = {**sampled.metrics, "pairs": float(len(preferences))}
        yield state.finish_step(metrics)._replace(number=number + 1)


def pair_loss_of(run: OnlineDpoRun) -> PairLoss:
    """The loss `run` names. ConfigError where it learns from single judged answers: a reward labels pairs."""
    entry = preference_loss.entry(run.loss.name, where="loss")
    if "pairs" not in entry.needs:
        raise ConfigError(f"loss: {entry.name} learns from single judged answers, and online_dpo makes pairs")
    return preference_loss.bind(run.loss.name, run.loss.options, where="loss")


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
