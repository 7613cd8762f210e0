"""Detectors that read the answers' text alone: length, variety, phrases, degenerate text."""

import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from rlhflab.analysis.detectors.base import (
    ANSWERS,
    PROMPTS,
    SHOWN,
    WINDOW,
    Unclear,
    by_step,
    clustered,
    detector,
    enough,
    first_and_later,
    having,
    numbers,
    prompts,
    shown,
    spread_out,
    start_and_now,
    told,
)
from rlhflab.analysis.evidence import Evidence, Finding, Sample, Verdict
from rlhflab.analysis.texts import ngrams, words
from rlhflab.core.signals import cusum, log_odds, rarefied
from rlhflab.core.stats import Estimate, difference, jackknife, mean_interval, mean_variance
from rlhflab.scenarios.gold import count_words

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
OPENING = 3
"""Words of an answer's opening."""
NEARLY = 0.8
"""Share of a phrase's answers from which a longer one that holds a piece of it stands for it too."""
LONG = 200
"""Bytes below which text is too short to say how far it compresses."""


@lru_cache(maxsize=1 << 16)
def length(text: str) -> float:
    """Words, as the gold check counts them."""
    return float(count_words(text))


@detector("length_drift", needs=("rollouts",), source="Page 1954 (CUSUM); Singhal et al. 2023, arXiv:2310.03716")
def length_drift(evidence: Evidence, *, k: Annotated[float, Field(ge=0)] = 0.5, h: Positive = 5.0,
                 sides: Literal["upper", "two"] = "upper") -> Finding:
    """S_t = max(0, S_(t-1) + (mean words_t - start) / SE - k) above h.

    SE = s sqrt(1 / g_t + 1 / g_0) with s the start's deviation of prompts (cluster-robust) and g prompts a step: the
    error of a step's mean and of the start's. It accumulates, so one alarm is enough. `two` charts falls too.
    """
    start, later = first_and_later(by_step(evidence.rollouts))
    known = len(set(prompts(start)))
    enough(known, PROMPTS, "prompts answered by the starting policy")
    base, variance, _ = mean_variance(np.array([length(sample.answer) for sample in start]), prompts(start))
    if variance == 0:
        raise Unclear(f"all {len(start)} answers of the start have {base:g} words, so there is no deviation to "
                      "measure by")
    deviations = [(float(np.mean([length(sample.answer) for sample in samples])) - base)
                  / (variance * known * (1 / len(set(prompts(samples))) + 1 / known)) ** 0.5
                  for samples in later.values()]
    charts = {"above": cusum(deviations, k=k)}
    if sides == "two":
        charts["below"] = cusum([-z for z in deviations], k=k)
    side = max(charts, key=lambda name: charts[name][-1])
    level, now = charts[side][-1], list(later.values())[-1]
    change = difference([length(sample.answer) for sample in now], [length(sample.answer) for sample in start],
                        prompts(now), prompts(start))
    longer = side == "above"
    return Finding(
        name="length_drift", verdict="alarm" if level > h else "ok", effect=change, unit="words an answer",
        says=f"Answers have {base + change.mean:.1f} words on average and had {base:.1f} at the start; the chart of "
             f"what has added up {side} the start's noise stands at {level:.1f}.",
        limit=f"chart above {h:g} standard errors (k = {k:g}{', both sides' if sides == 'two' else ''})",
        examples=shown(now, lambda sample: length(sample.answer) * (1 if longer else -1)),
        next="Read the longest answers. If the words add nothing, take length out of the reward (length correction, "
             "ODIN, a cap) or add pairs whose shorter answer is the better one." if longer else
             "Read the shortest answers. If something is missing from them, look for a penalty or an end rule that "
             "pays for stopping early, and add pairs whose fuller answer is the better one.")


@detector("diversity", needs=("rollouts",), source="Li et al. 2016, arXiv:1510.03055 (distinct-n); Hurlbert 1971")
def diversity(evidence: Evidence, *, share: Share = 0.5) -> Finding:
    """Least of token entropy, distinct 2-grams, openings of now / start, below a share.

    Distinct 2-grams and openings (first three words) are counted among as many of them on both sides, in expectation.
    Entropies are read where they are recorded.
    """
    start, now = (spread_out(side) for side in start_and_now(evidence, window=WINDOW))
    kinds: dict[str, Callable[[str], Sequence[Hashable]]] = {
        "different pairs of words": lambda text: ngrams(text, 2),
        "different openings": lambda text: [words(text)[:OPENING]]}
    ratios = {kind: _variety_left(now, start, items) for kind, items in kinds.items()
              if all(any(items(s.answer) for s in side) for side in (start, now))}
    entropies = [having(side, lambda s: s.entropy) for side in (now, start)]
    if min(map(len, entropies)) >= ANSWERS and np.mean(numbers(entropies[1], lambda s: s.entropy)) > 0:
        ratios["entropy of the tokens"] = jackknife(
            lambda after, before: float(np.mean(after) / np.mean(before)),
            *(clustered(side, lambda s: s.entropy) for side in entropies))
    if not ratios:
        raise Unclear("no words were found in the answers")
    kind, worst = min(ratios.items(), key=lambda item: item[1].mean)
    opening = Counter(words(sample.answer)[:OPENING] for sample in now).most_common(1)[0][0]
    each = ", ".join(f"{name} {ratio.mean:.0%}" for name, ratio in ratios.items())
    return Finding(
        name="diversity", verdict="alarm" if worst.mean < share else "ok", effect=worst, unit=f"{kind}, now / start",
        says=f"Against the start there is left: {each}.", limit=f"any of them below {share:.0%} of the start",
        examples=tuple(s.answer for s in now if words(s.answer)[:OPENING] == opening)[:SHOWN],
        next="The policy says the same to every prompt: raise the KL coefficient or add an entropy bonus, lower the "
             "learning rate, and restart from the start rather than from here.")


def _variety_left(now: Sequence[Sample], start: Sequence[Sample],
                  items: Callable[[str], Sequence[Hashable]]) -> Estimate:
    """Different items of the answers of now / those of the start, among equally many."""

    def ratio(after: list[Sequence[Hashable]], before: list[Sequence[Hashable]]) -> float:
        pooled = [[item for found in side for item in found] for side in (after, before)]
        draws = min(map(len, pooled))
        return rarefied(pooled[0], draws) / rarefied(pooled[1], draws) if draws else float("nan")

    return jackknife(ratio, *(clustered(side, lambda s: items(s.answer)) for side in (now, start)))


class Phrase(NamedTuple):
    """A phrase that answers hold more often than those of the start."""

    text: str
    words: int
    z: float
    answers: int
    """Of now that hold it."""


def overused(now: Sequence[Sample], start: Sequence[Sample], *, z: float, prior: float) -> list[Phrase]:
    """Phrases of 1 to 5 words with log-odds of now against the start above `z`; each counts once an answer."""
    found = []
    for n in range(1, 6):
        counts = [Counter(" ".join(gram) for s in side for gram in set(ngrams(s.answer, n))) for side in (now, start)]
        found += [Phrase(phrase, n, score, counts[0][phrase])
                  for phrase, score in log_odds(*counts, prior=prior).items() if score > z]
    return found


def apart(phrases: Sequence[Phrase]) -> list[Phrase]:
    """The most frequent phrases, without those that are a piece of a longer one which nearly as many answers hold."""
    kept: list[Phrase] = []
    for phrase in sorted(phrases, key=lambda each: (-each.words, -each.answers, each.text)):
        pieces = set(ngrams(phrase.text, min(2, phrase.words)))
        if not any(pieces & set(ngrams(other.text, min(2, phrase.words))) for other in kept
                   if other.answers >= NEARLY * phrase.answers):
            kept.append(phrase)
    return sorted(kept, key=lambda each: (-each.answers, each.text))


def holding(phrase: str, samples: Sequence[Sample]) -> list[bool]:
    """Whether each answer holds a phrase."""
    return [f" {phrase} " in f" {' '.join(words(sample.answer))} " for sample in samples]


def phrase_rows(evidence: Evidence, *, most: int = 8, z: float = 3.0, prior: float = 0.2) -> list[dict[str, Any]]:
    """The phrases that the latest answers hold most often and oftener than those of the start, for a table.

    `start` and `now` are shares of answers. None where there are too few answers.
    """
    try:
        start, now = (spread_out(side) for side in start_and_now(evidence, least=2 * ANSWERS, window=WINDOW))
    except Unclear:
        return []
    return [{"phrase": phrase.text, "z": phrase.z, **{
        name: mean_interval([float(held) for held in holding(phrase.text, side)], prompts(side))._asdict()
        for name, side in (("start", start), ("now", now))}}
        for phrase in apart(overused(now, start, z=z, prior=prior))[:most]]


@detector("ngram_fixation", needs=("rollouts",), source="Monroe, Colaresi & Quinn 2008 (log-odds, Dirichlet prior)")
def ngram_fixation(evidence: Evidence, *, z: Positive = 3.0, share: Share = 0.2,
                   prior: Positive = 0.2) -> Finding:
    """A phrase of 1 to 5 words with log-odds z (now against start) above 3 and in over 20 % of answers.

    A phrase counts once an answer; its prior is `prior` x its count in both; the longest such phrase is named. With 32
    answers a side z stays near 4 even for a phrase that all have now and none had, hence 3.
    """
    start, now = (spread_out(side) for side in start_and_now(evidence, least=2 * ANSWERS, window=WINDOW))
    found = [(phrase.answers > share * len(now), phrase.words, phrase.z, phrase.text)
             for phrase in overused(now, start, z=z, prior=prior)]
    limit = f"a phrase with z above {z:g} in more than {share:.0%} of answers"
    if not found:
        return Finding(name="ngram_fixation", verdict="ok", limit=limit,
                       says=f"No phrase stands out in {len(now)} answers against {len(start)} of the start.")
    fixed, _, score, phrase = max(found)
    held = [holding(phrase, side) for side in (now, start)]
    has, had = ([float(holds) for holds in side] for side in held)
    effect = difference(has, had, prompts(now), prompts(start))
    return Finding(
        name="ngram_fixation", verdict="alarm" if fixed else "ok", effect=effect, unit="share of answers", limit=limit,
        says=f"'{phrase}' is in {np.mean(has):.0%} of {len(now)} answers and was in {np.mean(had):.0%} at the "
             f"start (z = {score:.1f}){_paid(now, held[0])}.",
        examples=tuple(dict.fromkeys(s.answer for s, holds in zip(now, held[0], strict=True) if holds))[:SHOWN],
        next="Score the same answers with the phrase deleted: if their reward falls, the reward model pays for it. Add "
             "pairs that differ in the phrase only, or drop it from the reward.")


def _paid(now: Sequence[Sample], held: Sequence[bool]) -> str:
    """What answers that hold the phrase are scored beside those that do not, where both are scored."""
    with_it, without = ([sample.reward for sample, holds in zip(now, held, strict=True)
                         if holds is side and sample.reward is not None] for side in (True, False))
    if min(len(with_it), len(without)) < 5:
        return ""
    gap = float(np.mean(with_it) - np.mean(without))
    return f", and answers with it are scored {abs(gap):.2g} {'higher' if gap > 0 else 'lower'} than those without"


@detector("degenerate_text", needs=("rollouts",), source="Welleck et al. 2020, arXiv:1908.04319 (rep-n)")
def degenerate_text(evidence: Evidence, *, repeated: Share = 0.1, cut_off: Share = 0.05,
                    compressed: Share = 0.4) -> Finding:
    """Repeated 4-grams above .10, cut-offs above .05, or deflated size below .40, and worse than at the start.

    The size is read of answers of at least 200 bytes, the cut-offs where it is known how answers ended. Without answers
    of a start the limits alone decide, and have to lie outside the 95 % interval.
    """
    steps = by_step(evidence.rollouts)
    start, now = (steps[step] for step in (min(steps), max(steps)))
    enough(len(now), ANSWERS, "answers of the latest step")
    signs: dict[str, tuple[Callable[[Sample], float | None], float, int]] = {
        "repeated 4-grams": (lambda s: _repetition(s.answer), repeated, 1),
        "cut off": (lambda s: None if s.stopped is None else float(not s.stopped), cut_off, 1),
        "size after compression": (lambda s: _compression(s.answer), compressed, -1)}
    worst: list[tuple[float, str, Estimate, Verdict]] = []
    for sign, (read, limit, side) in signs.items():
        held = having(now, read)
        if len(held) < ANSWERS:
            continue
        value = mean_interval(numbers(held, read), prompts(held))
        beyond = side * (value.mean - limit) > 0
        before = having(start, read) if start is not now else []
        if before:
            change = difference(numbers(held, read), numbers(before, read), prompts(held), prompts(before))
            worse = change.low > 0 if side > 0 else change.high < 0
        else:
            worse = value.low > limit if side > 0 else value.high < limit
        worst.append((side * (value.mean - limit) / limit, sign, value, "alarm" if beyond and worse else "ok"))
    if not worst:
        raise Unclear("the answers are too short to hold four words, and it is not known how they ended")
    alarms = [each for each in worst if each[3] == "alarm"]
    _, sign, effect, verdict = max(alarms or worst, key=lambda each: each[0])
    return Finding(
        name="degenerate_text", verdict=verdict, effect=effect, unit=sign,
        says=f"Of {len(now)} answers: {'; '.join(f'{name} {told(value)}' for _, name, value, _ in worst)}.",
        limit=f"repeated 4-grams above {repeated:g}, cut off above {cut_off:g}, or size after compression below "
              f"{compressed:g}, and worse than at the start",
        examples=shown(now, lambda s: _repetition(s.answer) or 0.0),
        next="Loops and answers that never end: take a penalty for a missing end (`end` of the run), check that the "
             "reward model was trained on answers with their end token, and go back to the last good checkpoint.")


def _repetition(text: str) -> float | None:
    """Share of the 4-grams that stood there before; None where there is none."""
    grams = ngrams(text, 4)
    return 1 - len(set(grams)) / len(grams) if grams else None


def _compression(text: str) -> float | None:
    """Deflated bytes / bytes; None for short text."""
    raw = text.encode(errors="replace")
    return len(zlib.compress(raw, 9, -15)) / len(raw) if len(raw) >= LONG else None
