"""Direct preference optimisation: preference pairs, a policy and its frozen reference. No reward model, no sampling
but for the probe that measures how far the policy has moved.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rlhflab.config import DpoRun
from rlhflab.core.batch import Tree, micro_batches, pack
from rlhflab.core.logprobs import answer_sums
from rlhflab.core.losses import AnswerLogprobs, PreferenceLoss, preference_loss
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.probe import Probe, fresh_sample_kl
from rlhflab.rollout.scoring import tree_logprobs
from rlhflab.train.guards import refuse_wrong_reference
from rlhflab.train.state import Step, TrainState, epochs_of_indices, step_count


def train_dpo(run: DpoRun, model: SharedModel, pairs: Sequence[Tree], *, reference: str | None,
              probe: Probe | None = None, role: str = "policy") -> Iterator[Step]:
    """Yields after every optimizer step. Each tree holds two answers, the chosen one first.

    `reference` is the frozen role the policy started as a copy of, None for the base. Its log-probs depend on the
    data alone and are computed once.
    """
    loss_of: PreferenceLoss = preference_loss.bind(run.loss.name, run.loss.options, where="loss")
    schedule = {"batch": run.batch, "epochs": run.epochs, "steps": run.steps}
    state = TrainState(run.optimizer, [(model.parameters(role), run.optimizer.learning_rate)],
                       total=step_count(len(pairs), **schedule))
    stored = tree_logprobs(model, pairs, role=reference, micro_tokens=run.micro_tokens)
    for indices in epochs_of_indices(len(pairs), seed=run.seed, **schedule):
        step = [pairs[i] for i in indices]
        for part in micro_batches([len(tree) for tree in step], run.micro_tokens):
            batch = pack([step[i] for i in part]).to(model.device)
            policy = model.logprobs(batch, role).logprob
            reference_logprob = torch.cat([stored[indices[i]] for i in part]).to(model.device)
            if state.number == 0:
                refuse_wrong_reference(policy.detach(), reference_logprob, role=role, name=reference)
            pair = PairLogprobs.of(policy, reference_logprob, batch.owner, batch.answers)
            loss = loss_of(pair.chosen, pair.rejected)
            (loss.each.sum() / len(step)).backward()
            state.note(loss.metrics)
        state.optimize()
        measured = probe is not None and (state.number % run.probe_every == 0 or state.number == state.total)
        kl = fresh_sample_kl(model, probe, role=role, reference=reference) if probe and measured else {}
        yield state.finish_step({"tokens": sum(len(tree) for tree in step), **kl})


class PairLogprobs(NamedTuple):
    """Both sides of the pairs of a batch."""

    chosen: AnswerLogprobs
    rejected: AnswerLogprobs

    @classmethod
    def of(cls, policy: Float[Tensor, " s"], reference: Float[Tensor, " s"], owner: Tensor, n: int) -> "PairLogprobs":
        """Token log-probs summed over each answer; answers 0, 2, ... are the chosen ones."""
        sums = {"policy": answer_sums(policy, owner, n), "reference": answer_sums(reference, owner, n),
                "tokens": answer_sums(torch.ones_like(reference), owner, n)}
        return cls(*(AnswerLogprobs(**{name: values[side::2] for name, values in sums.items()}) for side in (0, 1)))
