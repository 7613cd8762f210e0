"""Whether two sides did the same work, from what each says of it. Numbers only: nothing is run here."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from peers.job import Facts

TOLERANCES = {"fp32": 1e-3, "bf16": 1e-2}
"""Largest relative difference; of two precisions, that of the coarser."""
SCORE_TOLERANCES = {"fp32": 1e-3, "bf16": 0.2}
"""Of a single score against the root mean square of all. Rounding the base to bf16, where the peer's stays fp32, has
moved one by .12 on a tiny model; an adapter left out, or a score read one token early, moves it by several."""


class Check(NamedTuple):
    """One number as each side says it. Equal within `tolerance`, relative to the peer's."""

    ours: Any
    peer: Any
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether they agree. What a side does not say, and NaN, agrees with nothing."""
        if self.ours is None or self.peer is None:
            return False
        if self.tolerance == 0:
            return bool(self.ours == self.peer)
        return bool(abs(self.ours - self.peer) <= self.tolerance * abs(self.peer))


def compare(ours: Facts, peer: Facts, *, precision: str) -> dict[str, Check]:
    """Every fact that either side states. Of a list, the element that differs most stands for it."""
    relative, of_scores = TOLERANCES[precision], SCORE_TOLERANCES[precision]
    checks = {name: Check(ours.exact.get(name), peer.exact.get(name), 0.0) for name in both(ours.exact, peer.exact)}
    checks |= {name: Check(ours.numbers.get(name), peer.numbers.get(name), relative)
               for name in both(ours.numbers, peer.numbers)}
    for name in both(ours.lists, peer.lists):
        checks[name] = worst(ours.lists.get(name, []), peer.lists.get(name, []), relative)
    for name in both(ours.rounded, peer.rounded):
        mine, theirs = ours.rounded.get(name, []), peer.rounded.get(name, [])
        if precision == "bf16" and len(mine) == len(theirs):
            mine, theirs, name = [sum(mine)], [sum(theirs)], f"{name}, all together"
        checks[name] = worst(mine, theirs, relative)
    for name in both(ours.scores, peer.scores):
        checks[name] = worst_score(ours.scores.get(name, []), peer.scores.get(name, []), of_scores)
    return checks


def worst(ours: Sequence[float], peer: Sequence[float], tolerance: float) -> Check:
    """The pair of elements with the largest relative difference; of lists of unequal length, none."""
    if len(ours) != len(peer) or not ours:
        return Check(None, None, tolerance)
    return max((Check(x, y, tolerance) for x, y in zip(ours, peer, strict=True)), key=_difference)


def worst_score(ours: Sequence[float], peer: Sequence[float], tolerance: float) -> Check:
    """The same, relative to the root mean square of the peer's scores, which the check's tolerance is made to say."""
    if len(ours) != len(peer) or not ours:
        return Check(None, None, tolerance)
    size = math.sqrt(sum(y * y for y in peer) / len(peer))
    x, y = max(zip(ours, peer, strict=True), key=lambda pair: _nan_is_largest(abs(pair[0] - pair[1])))
    return Check(x, y, tolerance * size / abs(y) if y else 0.0)


def both(ours: Any, peer: Any) -> list[str]:
    """Names that either side has, ours first."""
    return list(dict.fromkeys([*ours, *peer]))


def _difference(check: Check) -> float:
    gap = abs(check.ours - check.peer)
    return _nan_is_largest(gap / abs(check.peer) if check.peer else math.inf if gap else 0.0)


def _nan_is_largest(value: float) -> float:
    return math.inf if math.isnan(value) else value
