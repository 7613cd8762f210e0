"""A reward model: a LoRA role whose head scores the preferred answer higher.

One head, an ensemble of heads on one adapter, a quality head beside a length head, or a head on frozen features. How
the scores are read later is not here but in `rollout/reward_role.py`. Axes: p pairs, n answers, k heads.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import cosine_similarity

from rlhflab.config import RewardRun
from rlhflab.core.batch import PreferenceTree, Shelf, pair_index
from rlhflab.core.losses import Loss, bradley_terry_loss, length_loss
from rlhflab.errors import RunError
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.scoring import filled_shelf, read_trees, score_members
from rlhflab.train.state import Saved, Schedule, Step, TrainState

QUALITY, LENGTH = 0, 1
"""Rows of the head while a length head is trained beside it."""


def train_reward(run: RewardRun, model: SharedModel, preferences: Sequence[PreferenceTree], *,
                 role: str = "reward", saved: Saved | None = None) -> Iterator[Step]:
    """Yields after every optimizer step, which is on all pairs of `batch` prompts; the loss is their mean.

    All pairs of a prompt in one step, each answer read once, as Ouyang et al. 2022 (arXiv:2203.02155, section 3.5).
    The loss of an ensemble is the mean over its heads. The role's head has as many outputs as `head_outputs` says.
    """
    schedule = Schedule.of(run, len(preferences))
    state = TrainState(run.optimizer, [(model.parameters(role), run.optimizer.learning_rate),
                                       (model.head_parameters(role), run.head_learning_rate)],
                       total=len(schedule), saved=saved)
    weights = bootstrap(preferences, run.heads, seed=run.seed).to(model.device)
    shelf = filled_shelf(run, model, [each.tree for each in preferences], schedule.past(run.seed, state.done),
                         role=role)
    for indices in schedule.order(run.seed, done=state.done):
        step = [preferences[i] for i in indices]
        pull = length_pull(run, model, step, role, state) if run.length_head else None
        learn_scores(run, model, step, weights[:, indices], pull, state, role=role, shelf=shelf)
        if run.length_head:
            part_heads(run, model, role, state)
        state.optimize()
        yield state.finish_step({"tokens": sum(len(each.tree) for each in step)})


def learn_scores(run: RewardRun, model: SharedModel, step: Sequence[PreferenceTree], weights: Float[Tensor, "k trees"],
                 pull: Sequence[Float[Tensor, "n 2"]] | None, state: TrainState, *, role: str,
                 shelf: Shelf) -> None:
    """Add up the gradient of the mean loss over all pairs of an optimizer step and all heads.

    `weights`: of each tree of the step in each head's loss. `pull`: what `length_pull` returned, where it is used.
    """
    pairs = sum(len(each.chosen) for each in step)

    def learn(part: list[int]) -> None:
        trees = [step[i] for i in part]
        outputs = model.outputs(shelf.pack([each.tree for each in trees], model.device), role)
        members = outputs.sum(-1, keepdim=True) if run.length_head else outputs
        prompt = torch.tensor([i for i in part for _ in step[i].chosen], device=model.device)
        losses = [pair_loss(run, trees, scores) for scores in members.unbind(-1)]
        total = sum((weight[prompt] * loss.each).sum() for weight, loss in zip(weights, losses, strict=True))
        total = total / (pairs * run.heads)
        if pull is not None:
            total = total + (torch.cat([pull[i] for i in part]) * outputs).sum()
        total.backward()
        for loss in losses:
            state.note(loss.metrics)

    state.accumulate([len(each.tree) for each in step], learn, micro_tokens=run.micro_tokens)


def head_outputs(run: RewardRun) -> int:
    """Outputs of the head while it is trained."""
    return 2 if run.length_head else run.heads


def pair_loss(run: RewardRun, trees: Sequence[PreferenceTree], scores: Float[Tensor, " n"]) -> Loss:
    """Bradley-Terry of one head on all pairs of `trees`; `scores` of their answers, in order."""
    chosen, rejected = pair_index(trees)
    strength = torch.tensor([strength for each in trees for strength in each.strength], dtype=scores.dtype,
                            device=scores.device)
    return bradley_terry_loss(scores[chosen], scores[rejected], margin=run.margin * strength, centering=run.centering,
                              label_smoothing=run.label_smoothing)


def bootstrap(preferences: Sequence[PreferenceTree], members: int, *, seed: int) -> Float[Tensor, "k trees"]:
    """How often each member's bootstrap holds the prompt of each tree; a single head sees every prompt once.

    Prompts are drawn, not pairs: the pairs of a prompt share its answers. Coste et al. 2023 (arXiv:2310.02743) vary the
    seed of training; bootstraps are the other classical way to let members differ (Breiman 1996).
    """
    if members == 1:
        return torch.ones(1, len(preferences))
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(each.tree.prompt for each in preferences))}
    drawn = torch.randint(len(numbers), (members, len(numbers)), generator=torch.Generator().manual_seed(seed))
    counts = torch.stack([torch.bincount(each, minlength=len(numbers)) for each in drawn])
    return counts[:, [numbers[each.tree.prompt] for each in preferences]].float()


# -- a quality head beside a length head (ODIN, arXiv:2402.07319) -------------------------------------------------


def length_pull(run: RewardRun, model: SharedModel, step: Sequence[PreferenceTree], role: str,
                state: TrainState) -> list[Float[Tensor, "n 2"]]:
    """Gradient of the correlation term by the outputs for each answer of each tree.

    A correlation over the whole step is no sum over micro-batches. So the outputs are read once without a gradient, the
    term is differentiated by them, and each micro-batch carries its part of that on into the weights.
    """
    read = score_members(model, [each.tree for each in step], role=role, micro_tokens=run.micro_tokens)
    outputs = torch.cat(read).requires_grad_()
    tokens = torch.tensor([float(len(answer.ids)) for each in step for answer in each.tree.answers])
    loss = length_loss(outputs[:, QUALITY], outputs[:, LENGTH], tokens)
    (gradient,) = torch.autograd.grad(run.length_weight * loss.each, outputs)
    state.note(loss.metrics)
    return list(gradient.to(model.device).split([len(each) for each in read]))


def part_heads(run: RewardRun, model: SharedModel, role: str, state: TrainState) -> None:
    """Gradient of the |cos| of the two heads, once a step."""
    (weight,) = model.head_parameters(role)
    cosine = cosine_similarity(weight[QUALITY], weight[LENGTH], dim=0)
    (run.orthogonality * cosine.abs()).backward()
    state.note({"head_cosine": cosine})


# -- heads on frozen features --------------------------------------------------------------------------------------


def fit_frozen_heads(run: RewardRun, model: SharedModel, preferences: Sequence[PreferenceTree], *,
                     role: str = "reward") -> dict[str, float]:
    """Give `role` the heads that minimise the loss on its own last states as they are; its adapter stays as it is.

    Each answer is read once. The loss with half the squared norm x `ridge` is convex, so the minimum is unique and
    depends on no seed. Returns means of the metrics over pairs and heads. RunError where the fit does not converge.
    """
    states = torch.cat(read_trees(model, [each.tree for each in preferences],
                                  lambda batch: model.hidden(batch, role)[batch.last].float(), per="answer",
                                  micro_tokens=run.micro_tokens)).double()
    # A constant in the features is a constant in the scores, which are standardised in any case.
    deviation = states.std(0, unbiased=False).clamp(min=1e-6)
    features = (states - states.mean(0)) / deviation
    weights = bootstrap(preferences, run.heads, seed=run.seed).double()
    pairs = torch.tensor([i for i, each in enumerate(preferences) for _ in each.chosen])
    heads = torch.stack([_fit_head(run, preferences, features, weight[pairs]) for weight in weights])
    model.set_head(role, heads / deviation)
    losses = [pair_loss(run, preferences, scores) for scores in (features @ heads.T).unbind(-1)]
    return {name: float(torch.cat([loss.metrics[name] for loss in losses]).mean()) for name in losses[0].metrics}


def _fit_head(run: RewardRun, preferences: Sequence[PreferenceTree], features: Float[Tensor, "n d"],
              weight: Float[Tensor, " p"]) -> Float[Tensor, " d"]:
    def objective(head: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        direction = torch.tensor(head, requires_grad=True)
        loss = (weight * pair_loss(run, preferences, features @ direction).each).mean()
        loss = loss + 0.5 * run.ridge * (direction @ direction)
        (gradient,) = torch.autograd.grad(loss, direction)
        return float(loss.detach()), gradient.numpy()

    found = minimize(objective, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B",
                     options={"maxiter": 10_000, "maxfun": 20_000, "ftol": 1e-14, "gtol": 1e-7})
    if not np.abs(found.jac).max() < 1e-4:
        raise RunError(f"the fit of a head on frozen features did not converge ({found.message}); raise ridge, which "
                       f"is {run.ridge:g}")
    return torch.tensor(found.x)
