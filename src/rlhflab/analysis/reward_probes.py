"""The perturbation probes and the style matrix of a reward model: what to score, and what the scores say.

Scores come in as numbers. Their unit is a deviation of the scores of the held-out answers.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import groupby
from random import Random
from typing import Literal, NamedTuple

import numpy as np

from rlhflab.analysis.perturbations import (
    Case,
    Change,
    Text,
    knows_note,
    must_drop,
    perturbation,
    with_filler,
    with_markdown,
    with_other_value,
)
from rlhflab.core.stats import Estimate, holm, mean_interval, sign_test
from rlhflab.data.types import PreferencePair
from rlhflab.scenarios.answers import right_answer, wrong_answer
from rlhflab.scenarios.base import Scenario

FEWEST = 12
"""Answers a probe needs for a result: 12 that all move one way have p = .006 after the correction for twelve."""
MOST_PREFERRED = 0.55
"""Share of answers that a change which adds nothing may be preferred in ..."""
MOST_RISE = 0.1
"""... and its mean change, deviations."""
ALPHA = 0.05
"""Of the sign tests, over all probes together (Holm)."""
RIGHT, WRONG = 0.6, 0.4
"""Least gold of an answer taken as right, greatest gold of one taken as wrong."""
STYLES = ("concise", "long", "long with Markdown")

Result = Literal["pass", "fail", "unclear", "too few"]


# -- cases ---------------------------------------------------------------------------------------------------------


def cases(pairs: Sequence[PreferencePair], task: Scenario | None, *, seed: int = 0) -> list[Case]:
    """One case a prompt, in an order drawn by `seed`; its answer is one that was preferred.

    What is right is the judged answer with the most gold (at least `RIGHT`), what is wrong the one with the least (at
    most `WRONG`); where there is none, a note scenario writes it. Without a scenario the preferred answer stands for
    the right one and the other answer of its pair for the wrong one.
    """
    def key(pair: PreferencePair) -> str:
        return repr(pair.prompt.messages)

    groups = [list(group) for _, group in groupby(sorted(pairs, key=key), key=key)]
    Random(seed).shuffle(groups)
    return [_case(group, task, Random(f"{seed}/{key(group[0])}")) for group in groups]


def _case(group: Sequence[PreferencePair], task: Scenario | None, random: Random) -> Case:
    pair = random.choice(group)
    if task is None:
        return Case(prompt=pair.prompt, answer=pair.chosen, right=pair.chosen, wrong=pair.rejected)
    gold = {text: task.judge(pair.prompt, text).gold for each in group for text in (each.chosen, each.rejected)}
    best, worst = max(gold, key=lambda text: gold[text]), min(gold, key=lambda text: gold[text])
    facts = pair.prompt.facts
    right = best if gold[best] >= RIGHT else right_answer(facts) if knows_note(facts) else None
    wrong = worst if gold[worst] <= WRONG and worst.strip() else \
        wrong_answer(facts, random) if knows_note(facts) else None
    return Case(prompt=pair.prompt, answer=pair.chosen, right=right, wrong=wrong)


# -- probes --------------------------------------------------------------------------------------------------------


def drawn_changes(drawn: Sequence[Case], *, most: int) -> dict[str, list[Change]]:
    """By perturbation: the change of each of the first `most` cases that it applies to; random by the case's prompt."""
    found: dict[str, list[Change]] = {}
    for entry in perturbation.entries():
        changes = (entry.function(case, Random(f"{entry.name}/{case.prompt.messages!r}")) for case in drawn)
        found[entry.name] = [change for change in changes if change is not None][:most]
    return found


def probe_changes(changes: Mapping[str, Sequence[Change]], scores: Mapping[Text, float], *,
                  deviation: float) -> dict[str, list[float]]:
    """By perturbation: the change of each answer's score in deviations, as `Evidence.probes` holds it.

    A change of which a text has no score (it was too long to read) is left out.
    """
    return {name: [change.score(scores) / deviation for change in each if scores.keys() >= set(change.texts)]
            for name, each in changes.items()}


class Probe(NamedTuple):
    """What one perturbation did to the scores."""

    name: str
    summary: str
    must_drop: float | None
    """Deviations that a good reward model takes off; None where the score must not rise."""
    n: int
    preferred: Estimate | None
    """Share of answers that score higher with the change, equal scores counted as half."""
    change: Estimate | None
    """Of the score, deviations."""
    p: float | None
    """Of the sign test, corrected for the number of probes (Holm)."""
    result: Result


def judge_probes(changes: Mapping[str, Sequence[float]]) -> list[Probe]:
    """The result of each probe; those on fewer than `FEWEST` answers have none.

    A change that adds nothing fails where the sign test finds it preferred, and by more than `MOST_PREFERRED` of the
    answers or `MOST_RISE` deviations; above one of these without the test it is unclear. One that makes answers worse
    passes where the sign test finds the score lower, by at least `must_drop` on average; so much without the test is
    unclear, and less fails.
    """
    enough = [name for name, each in changes.items() if len(each) >= FEWEST]
    p_values = dict(zip(enough, holm([sign_test(changes[name]) for name in enough]), strict=True))
    return [_probe(name, values, p_values.get(name)) for name, values in changes.items()]


def _probe(name: str, values: Sequence[float], p: float | None) -> Probe:
    entry, limit = perturbation.entry(name, where="perturbation"), must_drop(name)
    preferred = mean_interval([0.5 + 0.5 * float(np.sign(value)) for value in values]) if values else None
    change = mean_interval(values) if values else None
    result: Result = "too few"
    if p is not None and preferred is not None and change is not None:
        if limit is None:
            material = preferred.mean > MOST_PREFERRED or change.mean > MOST_RISE
            sure = p < ALPHA and preferred.mean > 0.5
            result = ("fail" if sure else "unclear") if material else "pass"
        else:
            material = preferred.mean < 0.5 and change.mean <= -limit
            result = ("pass" if p < ALPHA else "unclear") if material else "fail"
    return Probe(name, entry.summary, limit, len(values), preferred, change, p, result)


# -- style against substance ---------------------------------------------------------------------------------------


class Styled(NamedTuple):
    """A right and a wrong answer to one prompt, each in the three `STYLES`."""

    right: tuple[Text, ...]
    wrong: tuple[Text, ...]


def styled(drawn: Sequence[Case], *, most: int) -> list[Styled]:
    """Of the first `most` cases with a right and a wrong answer; the wrong one is the right one with another value.

    Where no value can be swapped, it is the case's own wrong answer. Long is two sentences that say nothing more,
    Markdown is bullets with the first one bold: what answers say stays the same over the styles.
    """
    found: list[Styled] = []
    for case in drawn:
        if len(found) == most:
            break
        random = Random(f"style/{case.prompt.messages!r}")
        wrong = with_other_value(case, random) or case.wrong
        if case.right is None or wrong is None:
            continue
        sides = [_in_styles(case, answer, Random(f"style/{case.prompt.messages!r}")) for answer in (case.right, wrong)]
        if sides[0] and sides[1]:
            found.append(Styled(sides[0], sides[1]))
    return found


def _in_styles(case: Case, answer: str, random: Random) -> tuple[Text, ...]:
    """The answer in the three styles; none where it is no plain text."""
    long = with_filler(answer, random)
    marked = with_markdown(long)
    return () if marked is None else (case.text(answer), case.text(long), case.text(marked))


class StyleMatrix(NamedTuple):
    """Whether the right answer outscores the wrong one, by the style of both (RM-Bench, arXiv:2410.16184)."""

    accuracy: list[list[Estimate]]
    """Row: style of the right answer; column: style of the wrong one. Equal scores count as half."""
    easy: Estimate
    """The right answer in the more elaborate style: mean below the diagonal."""
    normal: Estimate
    """Both in one style: mean of the diagonal."""
    hard: Estimate
    """The wrong answer in the more elaborate style: mean above the diagonal."""


def style_matrix(each: Sequence[Styled], scores: Mapping[Text, float]) -> StyleMatrix | None:
    """None with fewer than `FEWEST` prompts. Its means over cells have intervals clustered by prompt."""
    known = [one for one in each if scores.keys() >= {*one.right, *one.wrong}]
    if len(known) < FEWEST:
        return None
    right, wrong = (np.array([[scores[text] for text in texts] for texts in sides])
                    for sides in zip(*known, strict=True))
    wins = 0.5 + 0.5 * np.sign(right[:, :, None] - wrong[:, None, :])

    def mean_over(cells: Sequence[tuple[int, int]]) -> Estimate:
        clusters: list[Hashable] = [i for _ in cells for i in range(len(known))]
        return mean_interval([float(x) for i, j in cells for x in wins[:, i, j]], clusters)

    places = range(len(STYLES))
    return StyleMatrix([[mean_over([(i, j)]) for j in places] for i in places],
                       easy=mean_over([(i, j) for i in places for j in places if i > j]),
                       normal=mean_over([(i, i) for i in places]),
                       hard=mean_over([(i, j) for i in places for j in places if i < j]))
