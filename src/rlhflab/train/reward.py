"""A reward model: a LoRA role with a scalar head that scores the preferred answer higher."""

from collections.abc import Iterator, Sequence

import torch

from rlhflab.config import RewardRun
from rlhflab.core.batch import Tree, micro_batches, pack
from rlhflab.core.losses import bradley_terry_loss
from rlhflab.model.shared import SharedModel
from rlhflab.train.state import Step, TrainState, epochs_of_indices, step_count


def train_reward(run: RewardRun, model: SharedModel, pairs: Sequence[Tree], *, strength: Sequence[float] | None = None,
                 role: str = "reward") -> Iterator[Step]:
    """Yields after every optimizer step. Each tree holds two answers, the chosen one first.

    `strength` of each pair scales the margin asked for.
    """
    schedule = {"batch": run.batch, "epochs": run.epochs, "steps": run.steps}
    state = TrainState(run.optimizer, [(model.parameters(role), run.optimizer.learning_rate),
                                       (model.head_parameters(role), run.head_learning_rate)],
                       total=step_count(len(pairs), **schedule))
    margins = run.margin * torch.tensor(strength if strength is not None else [1.0] * len(pairs))
    for indices in epochs_of_indices(len(pairs), seed=run.seed, **schedule):
        step = [pairs[i] for i in indices]
        for part in micro_batches([len(tree) for tree in step], run.micro_tokens):
            batch = pack([step[i] for i in part]).to(model.device)
            chosen, rejected = model.score(batch, role).view(-1, 2).unbind(-1)
            margin = margins[[indices[i] for i in part]].to(model.device)
            loss = bradley_terry_loss(chosen, rejected, margin=margin, centering=run.centering)
            (loss.each.sum() / len(step)).backward()
            state.note(loss.metrics)
        state.optimize()
        yield state.finish_step({"tokens": sum(len(tree) for tree in step)})
