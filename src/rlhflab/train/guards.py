"""Checks that a run learns from what it thinks it learns from. Each stops a run with a sentence."""

import torch
from jaxtyping import Float
from torch import Tensor

from rlhflab.core.returns import kl_k3
from rlhflab.errors import RunError

START_KL = 1e-4
"""Largest KL(policy, reference) of a fresh run, nats a token."""


def refuse_wrong_reference(policy: Float[Tensor, " s"], reference: Float[Tensor, " s"], *, role: str,
                           name: str | None) -> None:
    """A policy that starts elsewhere than its reference is punished for the start, not for what it learns."""
    kl = float(kl_k3(policy, reference).mean())
    if not kl <= START_KL:
        raise RunError(f"KL({role}, {name or 'base'}) is {kl:.2g} nats a token before the first step, where it must be "
                       f"below {START_KL:g}: the reference is not what the policy started from")


def engine_gap(engine: Float[Tensor, " s"], trainer: Float[Tensor, " s"]) -> dict[str, float]:
    """How far the log-probs of the sampler and of the training forward lie apart, nats a token."""
    gap = (engine - trainer).abs()
    return {"engine_gap_max": float(gap.max()), "engine_gap_mean": float(gap.mean())}


def refuse_engine_gap(gap: dict[str, float], *, dtype: torch.dtype) -> None:
    """fp32: at most 1e-3 at any token; bf16: at most .05 in the mean."""
    name, limit = ("engine_gap_max", 1e-3) if dtype == torch.float32 else ("engine_gap_mean", 0.05)
    if not gap[name] <= limit:
        raise RunError(f"sampler and trainer disagree about the log-probs of the same tokens ({name} {gap[name]:.3g} "
                       f"nats, limit {limit:g}): they do not run the same weights")
