"""Learning from thumbs (KTO, BCO): single answers that were found good or bad, a policy and its reference.

Nothing is compared with another answer to the same prompt; an answer is pushed away from a baseline that belongs to
the whole optimizer step. The vocabulary and the step are those of `rlhflab.train.dpo`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from rlhflab.config import DpoRun
from rlhflab.core.batch import Batch, Shelf, ThumbTree, Tree, thumb_index
from rlhflab.core.losses import Loss
from rlhflab.core.preference import answer_logprobs
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.probe import Probe
from rlhflab.rollout.scoring import filled_shelf, tree_logprobs
from rlhflab.train.guards import refuse_wrong_reference
from rlhflab.train.preferences import Reference, measured_kl, objective
from rlhflab.train.state import Saved, Schedule, Step, TrainState


def train_thumbs(run: DpoRun, model: SharedModel, thumbs: Sequence[ThumbTree], *, reference: str | None,
                 probe: Probe | None = None, role: str = "policy", saved: Saved | None = None) -> Iterator[Step]:
    """Yields after every optimizer step, which is on all thumbs of `batch` prompts; the loss is their mean.

    `reference` is the frozen role the policy started as a copy of, None for the base.
    """
    goal = objective(run)
    schedule = Schedule.of(run, len(thumbs))
    state = TrainState(run.optimizer, [(model.parameters(role), run.optimizer.learning_rate)],
                       total=len(schedule), saved=saved)
    shift = RunningShift()
    state.carry("shift", shift)
    trees, past = [each.tree for each in thumbs], list(schedule.past(run.seed, state.done))
    shelf = filled_shelf(run, model, trees, past, role=role)
    compared = Reference(run, model, reference, trees, shelf=shelf, past=past)
    for indices in schedule.order(run.seed, done=state.done):
        step = [thumbs[i] for i in indices]
        baseline = shift.value if "running shift" in goal.needs else mismatched_kl(
            run, model, [each.tree for each in step], role=role, reference=reference)
        seen = learn_thumbs(run, goal.loss_of, model, step, partial(compared.logprobs, indices), baseline, state,
                            role=role, reference=reference, shelf=shelf)
        state.optimize()
        shift.update(*(torch.cat(each) for each in zip(*seen, strict=True)))
        kl = measured_kl(run, model, probe, state, role=role, reference=reference)
        compared.follow(role, number=state.number)
        yield state.finish_step({"tokens": sum(len(each.tree) for each in step), **kl})


def learn_thumbs(run: DpoRun, loss_of: Callable[..., Loss], model: SharedModel, step: Sequence[ThumbTree],
                 stored: Callable[[Sequence[int], Batch], Tensor], baseline: float, state: TrainState, *, role: str,
                 reference: str | None, shelf: Shelf) -> list[tuple[Tensor, Tensor]]:
    """Add up the gradient of the mean loss over all thumbs of an optimizer step, as `rlhflab.train.dpo.learn_pairs`.

    Returns log-ratio and label of each thumb, a pair of tensors for each micro-batch.
    """
    judged = sum(len(each.judged) for each in step)

    def learn(part: list[int]) -> tuple[Tensor, Tensor]:
        batch = shelf.pack([step[i].tree for i in part], model.device)
        reference_logprob = stored(part, batch)
        policy = model.logprobs(batch, role).logprob
        if state.number == 0:
            state.note(refuse_wrong_reference(policy.detach(), reference_logprob, role=role, name=reference))
        answers, good = (each.to(model.device) for each in thumb_index([step[i] for i in part]))
        of_thumbs = answer_logprobs(policy, reference_logprob, batch.owner, batch.answers).of(answers)
        loss = loss_of(of_thumbs, good, torch.tensor(baseline, device=model.device))
        (loss.each.sum() / judged).backward()
        state.note(loss.metrics)
        return of_thumbs.logratio.detach(), good

    return state.accumulate([len(each.tree) for each in step], learn, micro_tokens=run.micro_tokens)


def mismatched_kl(run: DpoRun, model: SharedModel, trees: Sequence[Tree], *, role: str,
                  reference: str | None) -> float:
    """KTO's estimate of KL(role, reference), nats: the mean log-ratio of answers to another prompt, at least 0.

    Each prompt is read with the answers to the next other one of the step, cut to `max_length`, without gradient
    (arXiv:2402.01306 section 4.1). A step on one prompt has no other answers and gives 0.
    """
    mismatched = [_cut(Tree(prompt=tree.prompt, answers=other.answers), run.max_length)
                  for tree, other in zip(trees, next_others(trees), strict=True) if other is not None]
    if not mismatched:
        return 0.0
    shelf = Shelf()
    policy, base = (torch.cat(tree_logprobs(model, mismatched, role=each, micro_tokens=run.micro_tokens,
                                            shelf=shelf)).sum()
                    for each in (role, reference))
    return max(0.0, float(policy - base) / sum(len(tree.answers) for tree in mismatched))


def next_others(trees: Sequence[Tree]) -> list[Tree | None]:
    """The next tree, round in a circle, with another prompt. A prompt with many thumbs has more than one tree."""
    return [next((other for other in (*trees[i + 1:], *trees[:i]) if other.prompt != tree.prompt), None)
            for i, tree in enumerate(trees)]


def _cut(tree: Tree, longest: int) -> Tree:
    room = longest - len(tree.prompt)
    return replace(tree, answers=tuple(replace(answer, ids=answer.ids[:room]) for answer in tree.answers))


class RunningShift:
    """BCO's shift in nats: half way between the running mean log-ratios of good and of bad answers.

    arXiv:2404.04656: the mean over both labels, each label by itself, so that their shares do not matter. A step uses
    what the steps before it have seen, and needs no forward pass of its own; at the first step every log-ratio, and so
    the shift, is 0.
    """

    KEPT = 0.9
    """Weight of the mean so far when a step is added."""

    def __init__(self) -> None:
        self.good = self.bad = 0.0

    @property
    def value(self) -> float:
        """The shift for the next step."""
        return (self.good + self.bad) / 2

    def update(self, logratio: Float[Tensor, " n"], good: Tensor) -> None:
        """Add the log-ratios of a step. A label that the step has not keeps its mean."""
        if good.any():
            self.good = self.KEPT * self.good + (1 - self.KEPT) * float(logratio[good].mean())
        if not good.all():
            self.bad = self.KEPT * self.bad + (1 - self.KEPT) * float(logratio[~good].mean())

    def state_dict(self) -> dict[str, float]:
        """Both means."""
        return {"good": self.good, "bad": self.bad}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Put back what `state_dict` returned."""
        self.good, self.bad = state["good"], state["bad"]
