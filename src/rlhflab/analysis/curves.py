"""Curves of a proxy and of what it stands for, from a run's samples or its metrics, with what they say in words.

The statistics are in `overoptimisation.py`, the page in `curves_page.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhflab.analysis.evidence import Sample
from rlhflab.analysis.figures import short
from rlhflab.analysis.overoptimisation import (
    LEAST_PLACES,
    Fit,
    Parting,
    Series,
    Way,
    change,
    check_prompts,
    check_values,
    fit_gain,
    numbered,
    parting,
)
from rlhflab.analysis.page import signed
from rlhflab.analysis.recorded import value_of
from rlhflab.analysis.report_data import number
from rlhflab.core.stats import Estimate
from rlhflab.errors import DataError

PROMPTS_A_PLACE = 16
"""Neighbouring steps are one place until they asked so many prompts: a step of 8 alone shows its noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A proxy and what it stands for on one way from the start."""

    proxy: str
    against: str
    way: Way
    fits: Mapping[str, Fit | None]
    """By measure; None where there are too few places to fit."""
    parting: Parting | None

    @property
    def points(self) -> list[dict[str, Any]]:
        """A row a place."""
        distance = self.way.distances()
        return [{"place": place, "kl": float(distance[i] ** 2), "distance": float(distance[i]),
                 "means": {name: float(series.means()[i]) for name, series in self.way.series.items()},
                 "gains": {name: change(series, i) for name, series in self.way.series.items()} if i else {}}
                for i, place in enumerate(self.way.places)]

    def as_json(self) -> dict[str, Any]:
        """What `curves.json` holds. Bounds that are not known are infinite here."""
        points = [{**row, "gains": {name: gain._asdict() for name, gain in row["gains"].items()}}
                  for row in self.points]
        found = self.parting
        return {
            "proxy": self.proxy, "against": self.against, "form": self.way.form, "prompts": self.way.prompts,
            "points": points, "fits": {name: None if fit is None else {
                "a": fit.a._asdict(), "b": fit.b._asdict(), "peak": fit.peak and fit.peak._asdict(),
                "best": fit.best._asdict(), "draws_with_a_peak": fit.peaked, "reach": fit.reach, "says": says_peak(fit)}
                for name, fit in self.fits.items()},
            "parting": None if found is None else {
                "best": self.way.places[found.best], "seen": self.way.places[found.seen],
                "proxy": found.proxy._asdict(), "against": found.against._asdict()},
            "says": says(self)}


def curve_of(way: Way, proxy: str, against: str, *, seed: int = 0) -> Curve:
    """The fits of every measure, and where the two part."""
    fits = {name: fit_gain(way, name, seed=seed) if way.apart >= LEAST_PLACES else None for name in way.series}
    parted = parting(way.series[proxy], way.series[against]) if way.prompts > 1 else None
    return Curve(proxy=proxy, against=against, way=way, fits=fits, parting=parted)


# -- from a run ----------------------------------------------------------------------------------------------------


def way_of_samples(samples: Sequence[Sample], names: Sequence[str], kl_of_step: Mapping[int, float], *,
                   pool: bool) -> Way:
    """Places of a run: its start (steps 0 and 1, before any update), then its steps. Samples lacking one are left out.

    KL is that of the samples' own log-probs, else that of their step. `pool` joins steps of few prompts. DataError
    where there is no start, too few prompts, or a measure that is constant or no number.
    """
    rows = [(sample, kl, values) for sample in samples
            if (kl := _kl(sample, kl_of_step)) is not None
            and None not in (values := [value_of(sample, name) for name in names])]
    if not rows:
        raise DataError(f"no sample has a KL and {' and '.join(names)}, so there is no curve to draw")
    steps = sorted({sample.step for sample, _, _ in rows})
    if steps[0] > 1:
        raise DataError(f"the first step on record is {steps[0]}; gains are measured from the start, step 0 or 1")
    prompts = numbered([sample.prompt_id for sample, _, _ in rows])
    check_prompts(len(set(prompts)))
    place_of = _places([(sample.step, prompt) for (sample, _, _), prompt in zip(rows, prompts, strict=True)], pool=pool)
    places = [place_of[sample.step] for sample, _, _ in rows]
    shape = (len(set(prompts)), max(places) + 1)
    columns = [[float(values[i]) for _, _, values in rows] for i in range(len(names))]  # type: ignore[arg-type]
    for name, column in zip(names, columns, strict=True):
        check_values(name, column, vary=name == names[0])
    distance, *series = (Series.of(column, prompts, places, shape=shape)
                         for column in ([kl for _, kl, _ in rows], *columns))
    return Way(form="rl", places=_labels(place_of), kl=distance, series=dict(zip(names, series, strict=True)))


def way_of_metrics(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Way:
    """Places of a run of which only the means of each step are known: no interval can be had."""
    found = [(step, values) for row in rows if (step := number(row.get("step"))) is not None
             and None not in (values := [number(row.get(name)) for name in ("kl", *names)])]
    if len(found) < 2 or found[0][0] > 1:
        raise DataError(f"metrics.jsonl: has no steps, from step 1 on, with kl, {' and '.join(names)}")
    kl, *series = np.array([values for _, values in found], dtype=float).T[:, None]
    check_values(names[0], series[0].ravel().tolist(), vary=True)
    ones = np.ones_like(kl)
    return Way(form="rl", places=tuple(f"{step:g}" for step, _ in found), kl=Series(total=kl, count=ones),
               series={name: Series(total=total, count=ones) for name, total in zip(names, series, strict=True)})


def _kl(sample: Sample, kl_of_step: Mapping[int, float]) -> float | None:
    if sample.logprob is not None and sample.reference_logprob is not None:
        return sample.logprob - sample.reference_logprob
    return 0.0 if sample.step <= 1 else kl_of_step.get(sample.step)


def _places(asked: Sequence[tuple[int, int]], *, pool: bool) -> dict[int, int]:
    """The place of each step. A last place with too few prompts is joined to the one before."""
    by_step: dict[int, set[int]] = {}
    for step, prompt in asked:
        by_step.setdefault(max(step, 1), set()).add(prompt)
    groups: list[list[int]] = []
    seen: set[int] = set()
    for step in sorted(by_step):
        if len(groups) < 2 or not pool or len(seen) >= PROMPTS_A_PLACE:
            groups.append([])
            seen = set()
        groups[-1].append(step)
        seen |= by_step[step]
    if pool and len(groups) > 2 and len(seen) < PROMPTS_A_PLACE:
        last = groups.pop()
        groups[-1] += last
    place_of = {step: i for i, group in enumerate(groups) for step in group}
    return {step: place_of[max(step, 1)] for step in {step for step, _ in asked}}


def _labels(place_of: Mapping[int, int]) -> tuple[str, ...]:
    groups = [[step for step in sorted(place_of) if place_of[step] == i] for i in range(max(place_of.values()) + 1)]
    return tuple(f"{group[0]}" if len(group) == 1 else f"{group[0]} to {group[-1]}" for group in groups)


# -- in words ------------------------------------------------------------------------------------------------------


def says(curve: Curve) -> list[str]:
    """What a reader has to know, in sentences."""
    last = len(curve.way.places) - 1
    proxy, against = (change(curve.way.series[name], last) for name in (curve.proxy, curve.against))
    sentences = [f"From the start to {where(curve.way, last)}, {curve.proxy} changed {_moved(proxy)} and "
                 f"{curve.against} {_moved(against)}."]
    if (fit := curve.fits[curve.against]) is not None:
        sentences.append(f"Fit of {curve.against}: {says_peak(fit)}.")
    else:
        sentences.append("There are too few distances from the start for a fit.")
    if curve.way.prompts == 1:
        return [*sentences, "Only the means of each step are known, so there is no interval, and whether the two part "
                "cannot be said."]
    found = curve.parting
    if found is None:
        return [*sentences, "The two do not part: nowhere has the one surely fallen while the other is up."]
    return [*sentences, f"They part after {where(curve.way, found.best)}: by {where(curve.way, found.seen)} "
            f"{curve.proxy} has changed {_moved(found.proxy)} since the start, and {curve.against} "
            f"{_moved(found.against)} since its best."]


def where(way: Way, place: int) -> str:
    """`n = 16 (√KL 1.25)` or `steps 10 to 12 (√KL 2.1)`."""
    name = f"n = {way.places[place]}" if way.form == "best-of-n" else \
        f"step{'s' if ' ' in way.places[place] else ''} {way.places[place]}"
    return f"{name} (\u221aKL {way.distances()[place]:.2f})" if place else "the start"


def says_peak(fit: Fit) -> str:
    """Where the fit is highest."""
    share = "" if fit.peaked is None else f"; {fit.peaked:.0%} of the draws have a peak there"
    if fit.peak is None:
        return f"no peak within reach, it still rises at \u221aKL {short(fit.reach)}{share}"
    if fit.peak.mean == 0:
        return "the start is best, every step from it loses"
    return f"highest at \u221aKL {bounds(fit.peak)}, {bounds(fit.best)} above the start{share}"


def bounds(value: Estimate) -> str:
    """A mean with its interval, an endless bound named as such; the count stands elsewhere."""
    if np.isneginf(value.low):
        return f"{short(value.mean)} (interval unknown)"
    high = "no end" if np.isposinf(value.high) else short(value.high)
    return f"{short(value.mean)} [{short(value.low)},\u00a0{high}]"


def _moved(value: Estimate) -> str:
    unsure = value.low <= 0 <= value.high and np.isfinite(value.low)
    return f"by {signed(value)}" + (", which may be nothing" if unsure else "")
