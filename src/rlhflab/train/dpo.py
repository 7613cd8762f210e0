"""Direct preference optimisation and its relatives: preference pairs, a policy and, for most losses, its reference.

No reward model, and no sampling but for the probe that measures how far the policy has moved.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from jaxtyping import Float, Int
from torch import Tensor

from rlhflab.config import DpoRun, OnlineDpoRun, PairObjective
from rlhflab.core.batch import Batch, PreferenceTree, Shelf, pair_index
from rlhflab.core.losses import Loss
from rlhflab.core.preference import PairLoss, add_nll, answer_logprobs, less_tail
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.probe import Probe
from rlhflab.rollout.scoring import filled_shelf
from rlhflab.train.guards import refuse_wrong_reference
from rlhflab.train.preferences import Reference, measured_kl, objective
from rlhflab.train.state import Saved, Schedule, Step, TrainState


def train_dpo(run: DpoRun, model: SharedModel, preferences: Sequence[PreferenceTree], *, reference: str | None,
              probe: Probe | None = None, role: str = "policy", saved: Saved | None = None) -> Iterator[Step]:
    """Yields after every optimizer step, which is on all pairs of `batch` prompts; the loss is their mean.

    `reference` is the frozen role the policy started as a copy of, None for the base. A loss that needs no reference
    reads none.
    """
    goal = objective(run)
    schedule = Schedule.of(run, len(preferences))
    state = TrainState(run.optimizer, [(model.parameters(role), run.optimizer.learning_rate)],
                       total=len(schedule), saved=saved)
    trees, past = [each.tree for each in preferences], list(schedule.past(run.seed, state.done))
    shelf = filled_shelf(run, model, trees, past, role=role)
    compared = Reference(run, model, reference, trees, shelf=shelf, past=past) if goal.has_reference else None
    for indices in schedule.order(run.seed, done=state.done):
        step = [preferences[i] for i in indices]
        stored = partial(compared.logprobs, indices) if compared else None
        learn_pairs(run, goal.loss_of, model, step, stored, state, role=role, reference=reference, shelf=shelf)
        state.optimize()
        kl = measured_kl(run, model, probe, state, role=role, reference=reference)
        if compared:
            compared.follow(role, number=state.number)
        yield state.finish_step({"tokens": sum(len(each.tree) for each in step), **kl})


def learn_pairs(run: DpoRun | OnlineDpoRun, loss_of: PairLoss, model: SharedModel, step: Sequence[PreferenceTree],
                stored: Callable[[Sequence[int], Batch], Tensor] | None, state: TrainState, *, role: str,
                reference: str | None, shelf: Shelf) -> None:
    """Add up the gradient of the mean loss over all pairs of an optimizer step.

    `stored(items, batch)`: log-probs of `reference` for a batch of the trees number `items` of the step, (s,); None for
    a loss that needs none.
    """
    pairs = sum(len(each.chosen) for each in step)

    def learn(part: list[int]) -> None:
        batch = shelf.pack([step[i].tree for i in part], model.device)
        reference_logprob = stored(part, batch) if stored else None
        policy = model.logprobs(batch, role).logprob
        if state.number == 0 and reference_logprob is not None:
            state.note(refuse_wrong_reference(policy.detach(), reference_logprob, role=role, name=reference))
        chosen, rejected = (side.to(model.device) for side in pair_index([step[i] for i in part]))
        loss = pair_loss(run, loss_of, policy, reference_logprob, batch, chosen, rejected)
        (loss.each.sum() / pairs).backward()
        state.note(loss.metrics)

    state.accumulate([len(each.tree) for each in step], learn, micro_tokens=run.micro_tokens)


def pair_loss(run: PairObjective, loss_of: PairLoss, policy: Float[Tensor, " s"],
              reference: Float[Tensor, " s"] | None, batch: Batch, chosen: Int[Tensor, " p"],
              rejected: Int[Tensor, " p"]) -> Loss:
    """The loss of each pair, from the log-probs of the batch's scored tokens and the numbers of the pairs' answers.

    What a run says of length changes what the loss reads; the logged log-probs are those of whole answers.
    """
    answers = answer_logprobs(policy, reference, batch.owner, batch.answers)
    sides = answers.of(chosen), answers.of(rejected)
    whole = sides[0]
    if run.ld_alpha is not None:
        sides = less_tail(policy, reference, batch.owner, chosen, rejected, alpha=run.ld_alpha)
    if run.length == "mean":
        sides = sides[0].per_token(), sides[1].per_token()
    loss = loss_of(*sides)
    if run.nll_weight:
        loss = add_nll(loss, whole, weight=run.nll_weight)
    logged = {"chosen_logprob_per_token": whole.mean.detach()}
    if reference is not None:
        logged["chosen_shift_per_token"] = whole.per_token().logratio.detach()
    return Loss(loss.each, {**loss.metrics, **logged})
