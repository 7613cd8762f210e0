"""From won and lost comparisons to a win rate freed of length, and to a ranking of several. NumPy and SciPy only.

Who judged is no matter here. A tie is half a win. Axes: c comparisons, m things that are ranked.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from rlhflab.core.stats import Estimate, mean_interval

Array = NDArray[np.float64]
ELO = 400 / np.log(10)
"""Elo points of one nat of strength."""
RIDGE = 1e-3
"""Weight of the squared coefficients: something that always wins keeps a finite strength."""


class WinRate(NamedTuple):
    """How often one side wins, as it is and at equal length."""

    raw: Estimate
    controlled: Estimate
    """sigmoid(theta) of logit P(win) = theta + phi tanh(length change / its deviation)."""
    phi: float
    """Above 0: the longer answer wins more often."""


class Rank(NamedTuple):
    """Place of one of several."""

    name: str
    elo: Estimate
    """Elo points around the mean of all."""
    best: int
    worst: int
    """95 % of the draws put it between these places."""


def win_rate(wins: Sequence[float], length_change: Sequence[float], prompts: Sequence[Hashable], *,
             draws: int = 500, seed: int = 0) -> WinRate:
    """Win rate with length control (Dubois et al. 2024, arXiv:2404.04475, without its terms for difficulty).

    `wins`: 1, 0, or .5 for a tie; `length_change`: words of the answer less those of the other. Intervals draw prompts.
    Raises ValueError for no comparisons.
    """
    won, change = np.asarray(wins, dtype=float), np.asarray(length_change, dtype=float)
    deviation = float(change.std())
    pull = np.tanh(change / deviation) if deviation > 0 else np.zeros_like(change)
    _, member = np.unique(np.asarray([str(name) for name in prompts]), return_inverse=True)
    theta, phi = _logistic(won, pull, np.ones_like(won))
    rng, groups = np.random.default_rng(seed), int(member.max()) + 1
    found = []
    for _ in range(draws if groups > 1 else 0):
        weight = np.bincount(rng.integers(groups, size=groups), minlength=groups)[member].astype(float)
        found.append(special.expit(_logistic(won, pull, weight)[0]))
    low, high = np.quantile(found, [0.025, 0.975]) if found else (0.0, 1.0)
    controlled = Estimate(float(special.expit(theta)), float(low), float(high), int(won.size))
    return WinRate(mean_interval(wins, prompts), controlled, float(phi))


def _logistic(won: Array, pull: Array, weight: Array) -> Array:
    """Both coefficients, theta and phi, of the weighted likelihood, by Newton's method: two coefficients, convex."""
    design, beta = np.stack([np.ones_like(pull), pull], axis=1), np.zeros(2)
    for _ in range(30):
        chance = special.expit(design @ beta)
        gradient = design.T @ (weight * (won - chance)) - RIDGE * beta
        curvature = (design * (weight * chance * (1 - chance))[:, None]).T @ design + RIDGE * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        beta = beta + np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-10:
            break
    return beta


def bradley_terry(names: Sequence[str], comparisons: Sequence[tuple[int, int, float]], prompts: Sequence[Hashable], *,
                  draws: int = 1000, seed: int = 0) -> list[Rank]:
    """Strengths by maximum likelihood (Bradley & Terry 1952), the strongest first, with intervals over prompts.

    A comparison is (i, j, share of the win that i has). Raises ValueError for no comparisons.
    """
    if not comparisons:
        raise ValueError("no comparisons to rank by")
    _, member = np.unique(np.asarray([str(name) for name in prompts]), return_inverse=True)
    groups, m = int(member.max()) + 1, len(names)
    won = np.zeros((groups, m, m))
    for group, (i, j, share) in zip(member, comparisons, strict=True):
        won[group, i, j] += share
        won[group, j, i] += 1 - share
    strengths = _strengths(won.sum(0))
    rng = np.random.default_rng(seed)
    drawn = np.stack([_strengths(np.tensordot(np.bincount(rng.integers(groups, size=groups), minlength=groups), won, 1))
                      for _ in range(draws)])
    places = (-drawn).argsort(1).argsort(1) + 1
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    first, last = np.quantile(places, [0.025, 0.975], axis=0)
    counts = [sum(i in pair[:2] for pair in comparisons) for i in range(m)]
    ranks = [Rank(name, Estimate(float(ELO * strengths[i]), float(ELO * low[i]), float(ELO * high[i]), counts[i]),
                  int(first[i]), int(np.ceil(last[i]))) for i, name in enumerate(names)]
    return sorted(ranks, key=lambda rank: -rank.elo.mean)


def _strengths(won: Array) -> Array:
    """Strengths in nats around a mean of 0; `won[i, j]`: how often i won over j."""
    def loss(strength: Array) -> tuple[float, Array]:
        gap = strength[:, None] - strength[None, :]
        slope = won * special.expit(-gap)
        return (float((won * np.logaddexp(0, -gap)).sum() + RIDGE / 2 * (strength**2).sum()),
                slope.sum(0) - slope.sum(1) + RIDGE * strength)

    found: Array = optimize.minimize(loss, np.zeros(len(won)), jac=True, method="L-BFGS-B").x
    centred: Array = found - found.mean()
    return centred
