"""How far a policy has moved from its reference, measured on answers it samples itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from rlhflab.core.batch import pack
from rlhflab.core.logprobs import answer_sums
from rlhflab.core.returns import kl_k1, kl_k3
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Prompt, Rollout
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.sampling import rollout_trees, sample


class FreshAnswers(NamedTuple):
    """Answers with what was read of their tokens, one answer after the other, on the CPU. Axis: s tokens."""

    rollouts: Sequence[Rollout]
    logprob: Float[Tensor, " s"]
    entropy: Float[Tensor, " s"]
    reference: Float[Tensor, " s"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Prompts whose fresh answers measure the KL; the same seeds every time."""

    prompts: Sequence[Prompt]
    chat: ChatFormat
    max_new_tokens: int
    seed: int = 0
    observe: Callable[[int, FreshAnswers], None] = lambda step, answers: None
    """Is shown the answers with the number of the step they come after."""


@torch.no_grad()
def fresh_sample_kl(model: SharedModel, probe: Probe, *, role: str, reference: str | None,
                    step: int = 0) -> dict[str, float | None]:
    """k1 and k3 estimates of KL(role, reference) at temperature 1, nats an answer, and the answers' mean length."""
    rollouts = sample(model, probe.chat, probe.prompts, role=role, max_new_tokens=probe.max_new_tokens, seed=probe.seed)
    batch = pack(rollout_trees(rollouts)).to(model.device)
    policy, base = model.logprobs(batch, role), model.logprobs(batch, reference).logprob
    sums = [answer_sums(kl(policy.logprob, base), batch.owner, batch.answers).mean() for kl in (kl_k1, kl_k3)]
    probe.observe(step, FreshAnswers(rollouts, policy.logprob.cpu(), policy.entropy.cpu(), base.cpu()))
    return {"kl": float(sums[0]), "kl_k3": float(sums[1]),
            "sample_tokens": sum(len(r.token_ids) for r in rollouts) / len(rollouts)}
