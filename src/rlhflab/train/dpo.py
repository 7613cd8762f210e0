"""Direct preference optimisation: preference pairs, a policy and its frozen reference.

No reward model, and no sampling but for the probe that measures how far the policy has moved.
"""

from collections.abc import Iterator, Sequence

import torch

from rlhflab.config import DpoRun
from rlhflab.core.batch import Batch, PreferenceTree, micro_batches, pack, pair_index
from rlhflab.core.logprobs import answer_sums
from rlhflab.core.losses import AnswerLogprobs, PreferenceLoss, preference_loss
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.probe import Probe, fresh_sample_kl
from rlhflab.rollout.scoring import tree_logprobs
from rlhflab.train.guards import refuse_wrong_reference
from rlhflab.train.state import Saved, Schedule, Step, TrainState


def train_dpo(run: DpoRun, model: SharedModel, preferences: Sequence[PreferenceTree], *, reference: str | None,
              probe: Probe | None = None, role: str = "policy", saved: Saved | None = None) -> Iterator[Step]:
    """Yields after every optimizer step, which is on all pairs of `batch` prompts; the loss is their mean.

    `reference` is the frozen role the policy started as a copy of, None for the base. Its log-probs depend on the
    data alone and are computed once.
    """
    loss_of: PreferenceLoss = preference_loss.bind(run.loss.name, run.loss.options, where="loss")
    schedule = Schedule.of(run, len(preferences))
    state = TrainState(run.optimizer, [(model.parameters(role), run.optimizer.learning_rate)],
                       total=len(schedule), saved=saved)
    stored = tree_logprobs(model, [each.tree for each in preferences], role=reference, micro_tokens=run.micro_tokens)
    for indices in schedule.order(run.seed, done=state.done):
        step = [preferences[i] for i in indices]
        pairs = sum(len(each.chosen) for each in step)
        for part in micro_batches([len(each.tree) for each in step], run.micro_tokens):
            batch = pack([step[i].tree for i in part]).to(model.device)
            policy = model.logprobs(batch, role).logprob
            reference_logprob = torch.cat([stored[indices[i]] for i in part]).to(model.device)
            if state.number == 0:
                state.note(refuse_wrong_reference(policy.detach(), reference_logprob, role=role, name=reference))
            answers = answer_logprobs(policy, reference_logprob, batch)
            chosen, rejected = pair_index([step[i] for i in part])
            loss = loss_of(answers.of(chosen), answers.of(rejected))
            (loss.each.sum() / pairs).backward()
            state.note(loss.metrics)
        state.optimize()
        measured = probe is not None and (state.number % run.probe_every == 0 or state.number == state.total)
        kl = fresh_sample_kl(model, probe, role=role, reference=reference) if probe and measured else {}
        yield state.finish_step({"tokens": sum(len(each.tree) for each in step), **kl})


def answer_logprobs(policy: torch.Tensor, reference: torch.Tensor, batch: Batch) -> AnswerLogprobs:
    """Token log-probs (s,) of both summed over each answer of the batch (n,)."""
    tokens = torch.ones_like(reference)
    return AnswerLogprobs(**{name: answer_sums(values, batch.owner, batch.answers) for name, values in (
        ("policy", policy), ("reference", reference), ("tokens", tokens))})
