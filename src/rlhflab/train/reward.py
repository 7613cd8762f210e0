"""A reward model: a LoRA role with a scalar head that scores the preferred answer higher."""

from collections.abc import Iterator, Sequence

import torch

from rlhflab.config import RewardRun
from rlhflab.core.batch import PreferenceTree, micro_batches, pack, pair_index
from rlhflab.core.losses import bradley_terry_loss
from rlhflab.model.shared import SharedModel
from rlhflab.train.state import Saved, Schedule, Step, TrainState


def train_reward(run: RewardRun, model: SharedModel, preferences: Sequence[PreferenceTree], *,
                 role: str = "reward", saved: Saved | None = None) -> Iterator[Step]:
    """Yields after every optimizer step, which is on all pairs of `batch` prompts; the loss is their mean.

    All pairs of a prompt in one step, each answer read once, as Ouyang et al. 2022 (arXiv:2203.02155, section 3.5).
    """
    schedule = Schedule.of(run, len(preferences))
    state = TrainState(run.optimizer, [(model.parameters(role), run.optimizer.learning_rate),
                                       (model.head_parameters(role), run.head_learning_rate)],
                       total=len(schedule), saved=saved)
    for indices in schedule.order(run.seed, done=state.done):
        step = [preferences[i] for i in indices]
        pairs = sum(len(each.chosen) for each in step)
        for part in micro_batches([len(each.tree) for each in step], run.micro_tokens):
            trees = [step[i] for i in part]
            chosen, rejected = pair_index(trees)
            strength = torch.tensor([strength for each in trees for strength in each.strength], device=model.device)
            scores = model.score(pack([each.tree for each in trees]).to(model.device), role)
            loss = bradley_terry_loss(scores[chosen], scores[rejected], margin=run.margin * strength,
                                      centering=run.centering)
            (loss.each.sum() / pairs).backward()
            state.note(loss.metrics)
        state.optimize()
        yield state.finish_step({"tokens": sum(len(each.tree) for each in step)})
