"""Dose and response of the reward-hacking experiment: what more bias of the annotators does to an arm. Records only.

The statistics are in `overoptimisation.py` and `hacking.py`, the page in `doses_page.py`.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from rlhflab.analysis.hacking import PARTS, SeedResult, change_of, gains_by_prompt
from rlhflab.analysis.overoptimisation import DoseResponse, dose_response
from rlhflab.analysis.page import plain, signed
from rlhflab.core.stats import Estimate
from rlhflab.errors import DataError

HACKED = ("1", "2")
"""Criteria of the experiment that together say that an arm hacks: the proxy rises, quality falls."""
TREND = 0.05
"""p below which a trend is said to be there."""


class Dosed(NamedTuple):
    """An arm at one dose: what was evaluated, and what its experiment decided."""

    dose: float
    arm: str
    source: str
    """Where it is from, in words."""
    results: Sequence[SeedResult]
    proxy: Estimate | None
    """Gain of the proxy, deviations of the start's; None where it was not judged."""
    criteria: Mapping[str, bool]
    """Of `HACKED`, whether each was met; empty where they were not judged."""

    @property
    def hacks(self) -> bool | None:
        """Whether it hacks, None where that was not judged."""
        return all(self.criteria[name] for name in HACKED) if self.criteria else None


def dose_record(arm: str, doses: Sequence[Dosed]) -> dict[str, Any]:
    """Gains of gold by dose, their trend, and the lowest dose that hacks. JSON values, but for estimates' bounds.

    DataError for doses given twice, and as `dose_response`.
    """
    doses = sorted(doses, key=lambda each: each.dose)
    twice = next(((a, b) for a, b in pairwise(doses) if a.dose == b.dose), None)
    if twice is not None:
        raise DataError(f"dose {twice[0].dose:g} is given twice, by {twice[0].source} and by {twice[1].source}; each "
                        "dose is one experiment")
    by_prompt = [gains_by_prompt(each.results, "gold", each.arm) for each in doses]
    found = dose_response({each.dose: [gains[prompt] for prompt in by_prompt[0]]
                           for each, gains in zip(doses, by_prompt, strict=True)})
    rows = [{"dose": each.dose, "source": each.source, "gold": found.gains[each.dose]._asdict(),
             "proxy": each.proxy and each.proxy._asdict(),
             "parts": {part: change_of(each.results, part, each.arm, None)._asdict() for part in PARTS},
             "criteria": dict(each.criteria), "hacks": each.hacks} for each in doses]
    return {"arm": arm, "prompts": len(by_prompt[0]), "seeds": len(doses[0].results), "doses": rows,
            "slope": found.slope._asdict(), "rises": found.rises, "falls": found.falls,
            "hacks_at": next((each.dose for each in doses if each.hacks), None), "says": says(arm, doses, found)}


def says(arm: str, doses: Sequence[Dosed], found: DoseResponse) -> list[str]:
    """The result in sentences."""
    trend = (f"it falls with the dose (p = {found.falls:.2g})" if found.falls < TREND else
             f"it rises with the dose (p = {found.rises:.2g})" if found.rises < TREND else
             f"no trend is shown (p = {found.falls:.2g} that it falls)")
    said = [f"Gold of {plain(arm)} changes by {signed(found.slope)} prompts, for one unit of dose; {trend}."]
    judged = [each for each in doses if each.hacks is not None]
    if not judged:
        said.append("Whether it hacks was not judged: the experiment's criteria are about the arm hack.")
    elif (first := next((each for each in judged if each.hacks), None)) is not None:
        said.append(f"The lowest dose that hacks, by criteria 1 and 2, is {first.dose:g}.")
    else:
        said.append("No dose hacks by criteria 1 and 2, of "
                    f"{', '.join(f'{each.dose:g}' for each in judged)} that were judged.")
    said.extend(f"Dose {each.dose:g} is {each.source}, on the same seeds; its own reward is another one, so criteria 1 "
                "and 2 were not judged of it." for each in doses if each.arm != arm)
    return said
