"""Formulas that both sides' workers use on what they have read, so that a difference is in the reading."""

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Any

BETA = 0.1
"""Of DPO: TRL's default."""


def digest(values: Any) -> str:
    """The first 16 hex digits of the sha256 of some JSON value."""
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def dpo_loss(policy: Sequence[float], reference: Sequence[float]) -> float:
    """Mean of -log sigmoid(beta h) over pairs (arXiv:2305.18290 eq. 7), from summed log-probs: chosen, rejected, ..."""
    ratio = [p - r for p, r in zip(policy, reference, strict=True)]
    return _mean(_softplus(-BETA * (chosen - rejected)) for chosen, rejected in _pairs(ratio))


def reward_loss(scores: Sequence[float]) -> float:
    """Mean of -log sigmoid(chosen - rejected) over pairs, from scores: chosen, rejected, ..."""
    return _mean(_softplus(rejected - chosen) for chosen, rejected in _pairs(scores))


def _pairs(values: Sequence[float]) -> list[tuple[float, float]]:
    return list(zip(values[::2], values[1::2], strict=True))


def _mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
