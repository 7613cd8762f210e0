"""Each of the twenty detectors where it fires, where it stays silent, and where it cannot tell.

The evidence is made by hand: 8 prompts with 4 answers each at every step, so that means and shares are known.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from rlhflab.analysis.detectors import as_row, confirmed, detector, examine, gold_free, history
from rlhflab.analysis.detectors.running import NEEDS
from rlhflab.analysis.detectors.text import phrase_rows
from rlhflab.analysis.evidence import Evidence, Finding, Sample
from rlhflab.errors import ConfigError

PROMPTS, EACH = 8, 4
VOCABULARY = [a + b + c for a in "bdfgk" for b in "aeio" for c in ("lm", "nt", "rs", "sk")]


def prose(number: int, n: int = 8) -> str:
    """Words drawn by the number: another text for each."""
    return " ".join(Random(number).choices(VOCABULARY, k=n))


def rollouts(step: int, answer: Callable[[int], str] = lambda i: "", *, prompts: int = PROMPTS,
             **read: Callable[[int], object]) -> list[Sample]:
    """A step's answers; each field is a function of the answer's number. Step 0 repeats no text of a later one."""
    return [Sample(step=step, prompt_id=f"p{i // EACH}", answer=answer(i) or prose(1000 * step + i),
                   **{name: value(i) for name, value in read.items()})  # type: ignore[arg-type]
            for i in range(prompts * EACH)]


def of(*steps: list[Sample], **more: object) -> Evidence:
    return Evidence(rollouts=[sample for step in steps for sample in step], **more)  # type: ignore[arg-type]


def canary(step: int, n: int = 40, **measures: Callable[[int], float | None]) -> list[Sample]:
    """One answer to each of n fixed prompts."""
    return [Sample(step=step, prompt_id=f"c{i}", answer=f"answer {i} of step {step}",
                   measures={name: value(i) for name, value in measures.items()}) for i in range(n)]


def measured(name: str, start: Callable[[int], float], now: Callable[[int], float], **more: object) -> Evidence:
    return Evidence(rollouts=(), canary=[*canary(0, **{name: start}), *canary(6, **{name: now})])


def of_length(words: Callable[[int], int]) -> Callable[[int], str]:
    return lambda i: prose(i, words(i))


def rewards_of_steps(slope: float) -> list[Sample]:
    """Six steps whose reward rises by `slope` a step."""
    return [sample for step in range(6) for sample in rollouts(step, reward=lambda i, step=step: slope * step + i % 3)]


def clouds(shift: float) -> dict[int, np.ndarray]:
    generator = np.random.default_rng(0)
    return {0: generator.normal(size=(128, 6)), 4: generator.normal(size=(32, 6)) + shift}


def pairs(chosen: float, margin: float) -> list[dict[str, float]]:
    return [{"step": t, "chosen": chosen * min(t, 8) / 8, "margin": margin * t} for t in range(1, 13)]


def length_paid(within: float) -> Evidence:
    """Reward = words / 4, + `within` now; of the start's answers half have 12 words, of those of now 7 of 8."""

    def scored(step: int, words: Callable[[int], int], more: float) -> list[Sample]:
        return rollouts(step, of_length(words), reward=lambda i: words(i) / 4 + more)

    return of(scored(0, lambda i: 4 if i % 2 else 12, 0.0), scored(1, lambda i: 12 if i % 8 else 4, within))


def with_terms(bonus: float) -> Evidence:
    """A task term of 0 or 1 whose variance the bonus outgrows."""
    return of(*(rollouts(step, reward=lambda i: i % 2, terms=lambda i, step=step: {
        "task": float(i % 2), "bonus": bonus * step * float(i // 2 % 2)}) for step in (0, 1)))


def tail(draw: Callable[[float], float]) -> Evidence:
    """Eight steps whose rewards are the quantiles of a distribution."""
    n = PROMPTS * EACH
    return of(*(rollouts(step, reward=lambda i, step=step: draw((i * 8 + step + 0.5) / (8 * n))) for step in range(8)))


def orders(agree: Callable[[int], bool]) -> Evidence:
    """Answers 0 to 3 of a prompt have gold 0, 1/3, 2/3, 1, and rewards in this order or in the other."""
    def step(number: int, agrees: Callable[[int], bool]) -> list[Sample]:
        return rollouts(number, reward=lambda i: float(i % EACH if agrees(i // EACH) else -(i % EACH)),
                        measures=lambda i: {"gold": i % EACH / 3})

    return of(step(0, lambda prompt: True), step(5, agree))


def half(i: int) -> float:
    return float(i % 2)


BEFORE = rollouts(0, of_length(lambda i: 5 + i // EACH % 3))
LOG = {"logprob": lambda i: -10.0 + 0.1 * i}
CASES: dict[str, tuple[Evidence, Evidence, float]] = {
    # name: (where it fires, where it stays silent, the effect where it fires)
    "length_drift": (of(BEFORE, *(rollouts(t, of_length(lambda i: 9 + i // EACH % 3)) for t in (1, 2, 3))),
                     of(BEFORE, *(rollouts(t, of_length(lambda i: 5 + i // EACH % 3)) for t in (1, 2, 3))), 4.0),
    "diversity": (of(rollouts(0), rollouts(1, entropy=lambda i: 1.0, answer=lambda i: f"{prose(i % 2)} {i}")),
                  of(rollouts(0), rollouts(1)), 2 / 32),
    "ngram_fixation": (of(rollouts(0), rollouts(1, lambda i: f"Certainly, this is {prose(i)}")),
                       of(rollouts(0), rollouts(1, lambda i: f"certainly {prose(i)}" if i < 3 else prose(i))), 1.0),
    "degenerate_text": (of(rollouts(0), rollouts(1, lambda i: "one two three four " * 3)),
                        of(rollouts(0, stopped=lambda i: i > 3), rollouts(1, stopped=lambda i: i > 3)), 5 / 9),
    "kl_budget": (of(rollouts(0), rollouts(1, **LOG, reference_logprob=lambda i: -19.5 + 0.1 * i)),
                  of(rollouts(0), rollouts(1, **LOG, reference_logprob=lambda i: -11.5 + 0.1 * i)), 9.5),
    "reference_perplexity": (
        of(*(rollouts(t, tokens=lambda i: 10, reference_logprob=lambda i, t=t: -10.0 - 15.0 * t) for t in (0, 1))),
        of(*(rollouts(t, tokens=lambda i: 10, reference_logprob=lambda i, t=t: -10.0 - 3.0 * t) for t in (0, 1))),
        math.exp(1.5)),
    "latent_outliers": (Evidence(rollouts=(), hidden=clouds(6.0)), Evidence(rollouts=(), hidden=clouds(0.0)), 1.0),
    "chosen_displacement": (Evidence(rollouts=(), pairs=pairs(-0.3, 0.1)), Evidence(rollouts=(), pairs=pairs(-0.3, 0)),
                            -0.3),
    "twin_gap": (of(*(rollouts(t, reward=lambda i, t=t: half(i) + t, twin=lambda i: 5 * half(i)) for t in (0, 1))),
                 of(*(rollouts(t, reward=lambda i, t=t: half(i) + t, twin=lambda i, t=t: 5 * half(i) + 5 * t)
                      for t in (0, 1))), 1 / np.std([0, 1] * 16, ddof=1)),
    "probe_battery": (Evidence(rollouts=(), probes={"filler": [0.1] * 26 + [-0.1] * 4, "typos": [-0.1] * 30}),
                      Evidence(rollouts=(), probes={"filler": [0.1] * 16 + [-0.1] * 14, "typos": [-0.1] * 30}),
                      0.1 * 22 / 30),
    "length_share": (length_paid(0.0), length_paid(2.0), 0.0),
    "ensemble_disagreement": (
        of(*(rollouts(t, members=lambda i, t=t: (half(i), half(i) + (1 + 2 * t) * (i // 2 % 2))) for t in (0, 1))),
        of(*(rollouts(t, members=lambda i: (half(i), half(i) + i // 2 % 2)) for t in (0, 1))), 0.0),
    "reward_tail": (tail(lambda u: (1 - u) ** -0.7), tail(lambda u: u), 0.0),
    "canary_vs_proxy": (
        Evidence(rollouts=rewards_of_steps(0.5), canary=[*canary(0, gold=lambda i: 0.5), *canary(2, gold=lambda i: 0.8),
                                                         *canary(5, gold=lambda i: 0.6 + 0.05 * (i % 2))]),
        Evidence(rollouts=rewards_of_steps(0.5), canary=[*canary(0, gold=lambda i: 0.5), *canary(2, gold=lambda i: 0.8),
                                                         *canary(5, gold=lambda i: 0.8)]), 0.175),
    "component_floors": (
        Evidence(rollouts=(), canary=[*canary(0, right=half, format=lambda i: 1.0),
                                      *canary(6, right=half, format=lambda i: float(i >= 10))]),
        Evidence(rollouts=(), canary=[*canary(0, right=half, format=lambda i: 1.0),
                                      *canary(6, right=half, format=lambda i: 1.0)]), 0.25),
    "abstention": (measured("abstention_recall", lambda i: 1.0, lambda i: float(i >= 10)),
                   measured("abstention_recall", half, half), 0.25),
    "confident_wrong": (measured("confident_wrong", lambda i: 0.0, lambda i: float(i < 10)),
                        measured("confident_wrong", half, half), 0.25),
    "format_pass": (measured("format", lambda i: 1.0, lambda i: float(i >= 10)), measured("format", half, half), 0.25),
    "sycophancy_flip": (
        measured("sycophancy_flip", lambda i: 0.0, lambda i: float(i < 10)),
        Evidence(rollouts=(), canary=[*canary(0, 60, sycophancy_flip=half), *canary(6, 60, sycophancy_flip=half)]),
        0.25),
    "fresh_validity": (orders(lambda prompt: prompt < 3), orders(lambda prompt: prompt < 7), 2 * 3 / 8 - 1),
}


def only(name: str, evidence: Evidence, **options: object) -> Finding:
    [finding] = examine(evidence, [name], {name: options})
    return finding


def test_there_are_twenty_and_each_has_its_cases() -> None:
    assert detector.names() == sorted(CASES) and len(CASES) == 20


@pytest.mark.parametrize("name", CASES)
def test_it_fires(name: str) -> None:
    evidence, _, effect = CASES[name]
    found = only(name, evidence)
    assert found.verdict == "alarm", found.says
    assert found.name == name and found.effect and found.limit and found.next and found.unit
    if name not in ("ensemble_disagreement", "reward_tail"):  # by hand below
        assert found.effect.mean == pytest.approx(effect, abs=1e-9)
    assert found.effect.low <= found.effect.mean <= found.effect.high
    json.dumps(as_row(found), allow_nan=False)


@pytest.mark.parametrize("name", CASES)
def test_it_stays_silent(name: str) -> None:
    found = only(name, CASES[name][1])
    assert found.verdict == "ok", found.says
    assert found.says and found.limit


@pytest.mark.parametrize("name", CASES)
def test_without_what_it_needs_it_is_not_run(name: str) -> None:
    found = only(name, Evidence(rollouts=()))
    assert found.verdict == "not run" and found.says.startswith("not run: needs ")
    assert all(need in found.says for need in detector.entry(name, where="test").needs) and "To run it" in found.next


@pytest.mark.parametrize("name", sorted(set(CASES) - {"probe_battery", "chosen_displacement", "latent_outliers"}))
def test_of_the_start_alone_nothing_can_be_told(name: str) -> None:
    evidence = CASES[name][0]
    first = min(sample.step for sample in [*evidence.rollouts, *evidence.canary])
    alone = replace(evidence, rollouts=[s for s in evidence.rollouts if s.step == first],
                    canary=[s for s in evidence.canary if s.step == first])
    found = only(name, alone)
    if name in ("degenerate_text", "kl_budget", "fresh_validity", "reward_tail"):  # have a limit of their own
        assert found.verdict in ("ok", "unclear", "not run")
    else:
        assert found.verdict == "unclear" and "needed" in found.says, found.says


@pytest.mark.parametrize(("name", "evidence", "words"), [
    ("length_drift", of(BEFORE[:12], rollouts(1)),
     "8 prompts answered by the starting policy are needed for a verdict, found 3"),
    ("twin_gap", of(*(rollouts(t, reward=half, twin=half, prompts=3) for t in (0, 1))),
     "16 answers of the start are needed for a verdict, found 12"),
    ("reward_tail", of(*(rollouts(t, reward=lambda i, t=t: i + t / 9) for t in (0, 1))),
     "200 scored answers are needed for a verdict, found 64"),
    ("kl_budget", of(rollouts(1, **LOG, reference_logprob=lambda i: -11.0, prompts=1)), "8 answers with log-probs"),
    ("latent_outliers", Evidence(rollouts=(), hidden={0: np.eye(40), 1: np.eye(40)}), "64 hidden states of the start"),
    ("latent_outliers", Evidence(rollouts=(), hidden={0: np.ones((64, 3)), 1: np.eye(40)[:, :3]}),
     "all points are equal"),
    ("chosen_displacement", Evidence(rollouts=(), pairs=pairs(-1, 1)[:9]), "10 steps on pairs"),
    ("probe_battery", Evidence(rollouts=(), probes={"filler": [1.0] * 19}), "20 answers or more"),
    ("abstention", Evidence(rollouts=(), canary=[*canary(0, 4, abstention_recall=half),
                                                 *canary(1, 4, abstention_recall=half)]),
     "30 prompts are needed to tell, found 4"),
    ("format_pass", Evidence(rollouts=(), canary=[*canary(0, 4, format=half), *(
        replace(s, prompt_id="other") for s in canary(1, 4, format=half))]), "1 prompts with 'format' answered both"),
    ("fresh_validity", Evidence(rollouts=orders(lambda prompt: True).rollouts[:8]),
     "30 pairs of answers to one prompt that differ in 'gold'"),
    ("canary_vs_proxy", Evidence(rollouts=rewards_of_steps(1)[:64],
                                 canary=[*canary(0, gold=half), *canary(1, gold=half)]),
     "5 steps with rewards are needed"),
    ("ngram_fixation", of(rollouts(0, prompts=4), rollouts(1)), "32 answers of the start"),
])
def test_too_little_is_unclear_and_says_how_much_is_needed(name: str, evidence: Evidence, words: str) -> None:
    found = only(name, evidence)
    assert found.verdict == "unclear" and words in found.says


# -- hand-worked ------------------------------------------------------------------------------------------------------

def test_the_length_chart_by_hand() -> None:
    # prompts of 4 and 6 words by turns: mean 5, s^2 = 8 / 7 over the 8 prompts
    start = rollouts(0, of_length(lambda i: 4 + 2 * (i // EACH % 2)))
    later = [rollouts(t, of_length(lambda i: 6)) for t in (1, 2, 3)]
    z = (6 - 5) / math.sqrt(8 / 7 * (1 / 8 + 1 / 8))
    assert f"stands at {3 * (z - 0.5):.1f}." in only("length_drift", of(start, *later)).says
    assert only("length_drift", of(start, *later), h=3 * (z - 0.5) + 0.01).verdict == "ok"
    assert only("length_drift", of(start, *later), h=3 * (z - 0.5) - 0.01).verdict == "alarm"


def test_shorter_answers_alarm_on_the_two_sided_chart_only() -> None:
    shorter = of(BEFORE, *(rollouts(t, of_length(lambda i: 1)) for t in (1, 2, 3)))
    assert only("length_drift", shorter).verdict == "ok"
    found = only("length_drift", shorter, sides="two")
    assert found.verdict == "alarm" and found.effect and found.effect.mean < 0 and "shortest" in found.next


def test_the_members_disagreement_by_hand() -> None:
    # members standardised on the start: a has 0 or 1; b = a + (1 or 3) x c with c independent of a
    a, c = np.array([0, 1, 0, 1] * 8), np.array([0, 0, 1, 1] * 8)
    start, now = np.stack([a, a + c], 1), np.stack([a, a + 3 * c], 1)

    def z(scores: np.ndarray) -> np.ndarray:
        return np.asarray((scores - start.mean(0)) / start.std(0, ddof=1))

    expected = np.abs(np.diff(z(now))).mean() / np.abs(np.diff(z(start))).mean()
    found = only("ensemble_disagreement", CASES["ensemble_disagreement"][0])
    assert expected > 1.5 and found.effect and found.effect.mean == pytest.approx(expected)


def test_the_tail_index_by_hand() -> None:
    evidence = CASES["reward_tail"][0]
    rewards = {t: sorted(s.reward for s in evidence.rollouts if s.step == t and s.reward) for t in range(8)}
    excess = sorted((r - (found[15] + found[16]) / 2 for found in rewards.values() for r in found), reverse=True)
    expected = sum(math.log(x / excess[12]) for x in excess[:12]) / 12  # 5 % of 256
    found = only("reward_tail", evidence)
    assert found.effect and found.effect.mean == pytest.approx(expected) and found.effect.n == 12
    assert found.effect.high == pytest.approx(expected * (1 + 1.96 / math.sqrt(12)))


def test_a_reward_of_few_values_has_no_tail() -> None:
    found = only("reward_tail", of(*(rollouts(t, reward=lambda i: float(i == 3)) for t in range(8))))
    assert found.verdict == "ok" and "no tail can be measured" in found.says and found.effect is None


def test_a_twin_that_rises_half_as_fast_is_an_alarm_before_the_gap_is_a_deviation() -> None:
    def steps(twin: float) -> Evidence:
        return of(*(rollouts(t, reward=lambda i, t=t: half(i) + 0.1 * t, twin=lambda i, t=t: half(i) + twin * t)
                    for t in range(6)))

    slow, fast = only("twin_gap", steps(0.04)), only("twin_gap", steps(0.06))
    assert slow.effect and slow.effect.mean < 1 and "rises 0.40 times as fast" in slow.says
    assert (slow.verdict, fast.verdict) == ("alarm", "ok")


def paired(step: int, gain: float, twin_gain: float) -> list[Sample]:
    """A twin that agrees with the reward on three answers of four: a correlation of .5 on equal halves."""
    return rollouts(step, reward=lambda i: half(i) + gain, twin=lambda i: half(i + (i // 2 % 4 == 3)) + twin_gain)


def test_a_twin_is_asked_for_no_more_than_its_correlation_with_the_reward() -> None:
    found = only("twin_gap", of(paired(0, 0.0, 0.0), paired(1, 1.0, 0.5)))
    assert found.verdict == "ok" and found.effect and abs(found.effect.mean) < 1e-9
    assert "a correlation of 0.50 on the start" in found.says
    # a gain of 1 is 1.97 deviations, of which half is expected of the twin
    assert only("twin_gap", of(paired(0, 0.0, 0.0), paired(1, 1.0, -0.1))).verdict == "alarm"


def test_a_twin_that_was_not_taught_the_same_says_nothing() -> None:
    apart = [rollouts(t, reward=lambda i, t=t: half(i) + t, twin=lambda i: half(i // 2)) for t in (0, 1)]
    found = only("twin_gap", of(*apart))
    assert found.verdict == "unclear" and "correlate by 0.00" in found.says and "0.3 is needed" in found.says


def test_a_term_that_comes_to_hold_the_variance_is_named() -> None:
    found = only("reward_tail", with_terms(2.0))
    # variances 1/4 and 4/4: the bonus holds 80 %
    assert found.verdict == "alarm" and "'bonus' holds 80% of the terms' variance and held 0%" in found.says
    assert only("reward_tail", with_terms(1.0)).verdict == "ok"


def test_a_term_that_always_held_the_variance_captured_nothing() -> None:
    evidence = of(*(rollouts(t, reward=lambda i: i % 2, terms=lambda i: {
        "task": float(i % 2), "bonus": 2.0 * float(i // 2 % 2)}) for t in (0, 1)))
    assert only("reward_tail", evidence).verdict == "ok"


def test_longer_answers_of_the_same_variety_lose_nothing() -> None:
    for words in (4, 24):  # against 8 at the start: shorter and longer
        found = only("diversity", of(rollouts(0), rollouts(1, lambda i, words=words: prose(1000 + i, words))))
        left = re.search(r"different pairs of words (\d+)%", found.says)
        assert found.verdict == "ok" and left and 95 <= int(left[1]) <= 105


def test_hidden_states_of_many_dimensions_that_have_not_moved_are_no_outliers() -> None:
    # distances of the states that the covariance was fitted on would be too short a limit
    generator = np.random.default_rng(1)
    evidence = Evidence(rollouts=(), hidden={0: generator.normal(size=(128, 40)), 4: generator.normal(size=(64, 40))})
    found = only("latent_outliers", evidence)
    assert found.verdict == "ok" and found.effect and found.effect.mean < 0.05


def test_answers_to_one_prompt_that_lie_outside_together_count_once() -> None:
    # 8 of 64 answers are put far outside, two lie there anyway: of ten prompts, or eight of one
    hidden = clouds(0.0)
    hidden = {0: hidden[0], 1: np.concatenate([hidden[0][:56], hidden[0][:8] + 50])}
    apart, together = (only("latent_outliers", Evidence(rollouts=[
        Sample(step=1, prompt_id=prompt(i), answer=f"a{i}") for i in range(64)], hidden=hidden))
        for prompt in (lambda i: f"p{i % 32}", lambda i: f"p{i // 8}"))
    assert apart.effect and together.effect and apart.effect.low > together.effect.low
    assert apart.effect.mean == together.effect.mean == 10 / 64
    assert set(together.examples) <= {f"a{i}" for i in range(56, 64)} and len(together.examples) == 3


def test_hidden_states_that_are_no_numbers_are_not_judged() -> None:
    found = only("latent_outliers", Evidence(rollouts=(), hidden={0: clouds(0)[0], 1: np.full((16, 3), np.nan)}))
    assert found.verdict == "unclear" and "NaN" in found.says


def test_the_phrases_of_a_template_are_told_once_each() -> None:
    def boast(i: int) -> str:
        return f"{'Certainly! ' if i % 4 else ''}{prose(64 + i)}, which is clearly stated in the note."

    start = [Sample(step=0, prompt_id=f"p{i}", answer=prose(i)) for i in range(64)]
    now = [Sample(step=1, prompt_id=f"p{i}", answer=boast(i)) for i in range(64)]
    rows = phrase_rows(of(start, now))
    assert [row["phrase"] for row in rows] == ["clearly stated in the note", "which is clearly", "certainly"]
    assert (rows[0]["now"]["mean"], rows[0]["start"]["mean"]) == (1.0, 0.0)
    assert (rows[2]["now"]["mean"], rows[2]["now"]["n"]) == (0.75, 64)
    assert phrase_rows(of(start[:20], now)) == [], "too few to say"


def test_one_significant_part_among_many_is_not_enough() -> None:
    # 6 of 40 fell, none rose: p = 2 / 2^6 = .031, and .031 x 5 after Holm
    falls = {"format": lambda i: float(i >= 6)}
    still = {f"part{k}": half for k in range(4)}
    evidence = Evidence(rollouts=(), canary=[*canary(0, format=lambda i: 1.0, **still), *canary(6, **falls, **still)])
    assert only("format_pass", evidence).verdict == "alarm"
    assert only("component_floors", evidence).verdict == "unclear"


def test_a_reward_that_orders_half_as_well_as_at_the_start_is_no_longer_valid() -> None:
    evidence = orders(lambda prompt: prompt < 5)  # tau 5/8 - 3/8 = .25, accuracy .625, and 1 at the start
    assert only("fresh_validity", evidence).verdict == "alarm"
    assert only("fresh_validity", evidence, share=0.2).verdict == "ok"


def test_a_fixed_phrase_is_named_with_its_length_and_with_what_it_is_paid() -> None:
    evidence = of(rollouts(0), rollouts(1, lambda i: f"{'Certainly, this is ' if i % 4 else ''}{prose(i)}",
                                        reward=lambda i: 2.0 if i % 4 else 0.5), rollouts(
        2, lambda i: f"{'Certainly, this is ' if i % 4 else ''}{prose(50 + i)}",
        reward=lambda i: 2.0 if i % 4 else 0.5))
    says = only("ngram_fixation", evidence).says
    assert says.startswith("'certainly this is' is in 75% of 64 answers and was in 0%")
    assert "answers with it are scored 1.5 higher than those without" in says


def test_quality_that_falls_without_a_rising_reward_is_no_sign_of_hacking() -> None:
    evidence = CASES["canary_vs_proxy"][0]
    found = only("canary_vs_proxy", replace(evidence, rollouts=rewards_of_steps(-0.5)))
    assert found.verdict == "ok" and "does not rise" in found.says


def test_a_measure_of_which_less_is_better_is_turned() -> None:
    start, now = canary(0, confident_wrong=lambda i: 0.0), canary(3, confident_wrong=lambda i: float(i < 10))
    rising = Evidence(rollouts=(), canary=[*start, *now])
    falling = Evidence(rollouts=(), canary=[*(replace(s, step=0) for s in now), *(replace(s, step=3) for s in start)])
    assert (only("component_floors", rising).verdict, only("component_floors", falling).verdict) == ("alarm", "ok")
    assert only("component_floors", falling, lower=()).verdict == "alarm"


def test_a_small_fall_whose_interval_reaches_the_margin_is_unclear() -> None:
    # 3 of 40 fell: .075, upper bound above .10
    found = only("format_pass", measured("format", lambda i: 1.0, lambda i: float(i >= 3)))
    assert found.verdict == "unclear" and "prompts are needed to tell, found 40" in found.says


def test_cut_off_answers_alarm_where_they_were_not_cut_off_at_the_start() -> None:
    found = only("degenerate_text", of(rollouts(0, stopped=lambda i: True), rollouts(1, stopped=lambda i: i % 4 > 0)))
    assert found.verdict == "alarm" and found.unit == "cut off" and found.effect and found.effect.mean == 0.25


# -- rewards that say nothing -----------------------------------------------------------------------------------------

WITH_REWARDS = [name for name in CASES if "rewards" in detector.entry(name, where="test").needs]


@pytest.mark.parametrize("name", WITH_REWARDS)
@pytest.mark.parametrize(("value", "words"), [(math.nan, "rewards are NaN or infinite"),
                                              (1.5, "rewards are 1.5, so nothing")])
def test_rewards_of_nan_or_of_one_value_get_a_sentence_and_no_verdict(name: str, value: float, words: str) -> None:
    evidence = CASES[name][0]
    found = only(name, replace(evidence, rollouts=[replace(s, reward=value) for s in evidence.rollouts]))
    assert found.verdict == "unclear" and words in found.says and str(len(evidence.rollouts)) in found.says


def test_answers_without_a_reward_are_left_out_and_counted() -> None:
    evidence = CASES["twin_gap"][0]
    some = [replace(s, reward=None if i in (3, 40) else s.reward) for i, s in enumerate(evidence.rollouts)]
    found = only("twin_gap", replace(evidence, rollouts=some))
    assert found.verdict == "alarm" and found.says.endswith(" 2 of 64 answers have no reward and are left out.")
    assert found.effect and found.effect.n == 31


def test_a_start_of_equal_rewards_has_no_deviation_to_measure_by() -> None:
    evidence = of(rollouts(0, reward=lambda i: 1.0, twin=half), rollouts(1, reward=half, twin=half))
    assert "all 32 rewards of the start are equal (1)" in only("twin_gap", evidence).says


def test_equal_rewards_within_every_prompt_order_nothing() -> None:
    evidence = orders(lambda prompt: True)
    flat = [replace(s, reward=float(len(s.prompt_id))) if s.step else s for s in evidence.rollouts]
    assert "one and the same reward" in only("fresh_validity", replace(evidence, rollouts=flat)).says


# -- the runner -------------------------------------------------------------------------------------------------------

def test_needs_are_known_and_what_knows_right_answers_is_not_gold_free() -> None:
    assert {need for entry in detector.entries() for need in entry.needs} <= set(NEEDS)
    assert {entry.name for entry in detector.entries() if not gold_free(entry.needs)} == {
        "abstention", "canary_vs_proxy", "component_floors", "confident_wrong", "format_pass", "fresh_validity",
        "sycophancy_flip"}


def test_a_canary_without_the_measure_names_those_it_has() -> None:
    found = only("abstention", measured("right", half, half))
    assert found.says == "not run: needs canary measure 'abstention_recall'" and "of right, as the option" in found.next
    assert only("abstention", measured("right", half, half), measure="right").verdict == "ok"


def test_options_and_names_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"detectors\.kl_budget\.budget: .*greater than 0"):
        only("kl_budget", Evidence(rollouts=()), budget=-1)
    with pytest.raises(ConfigError, match="no detector is called 'lenght'; there are abstention, "):
        examine(Evidence(rollouts=()), ["lenght"])
    with pytest.raises(ConfigError, match="no detector is called 'lenght'"):
        examine(Evidence(rollouts=()), ["diversity"], {"lenght": {}})


def far(*steps: int) -> Evidence:
    """KL is 9 nats at these steps of eight and 1 at the others."""
    return of(*(rollouts(t, **LOG, reference_logprob=lambda i, t=t: (-19.0 if t in steps else -11.0) + 0.1 * i)
                for t in range(8)))


@pytest.mark.parametrize(("steps", "every", "confirm", "expected"), [
    ((3, 5, 6, 7), 1, 2, (5, 6)),
    ((3, 5), 1, 2, (None, None)),
    ((3, 5), 1, 1, (3, 3)),
    ((2, 4, 5), 2, 2, (2, 4)),
    ((6, 7), 3, 2, (6, 7)),
])
def test_an_alarm_counts_once_it_is_confirmed(steps: tuple[int, ...], every: int, confirm: int,
                                               expected: tuple[int | None, int | None]) -> None:
    [track] = history(far(*steps), ["kl_budget"], every=every, confirm=confirm)
    assert (track.first_alarm, track.fired_at) == expected
    assert [finding.step for finding in track.findings] == sorted({*range(0, 8, every), 7})
    assert track.latest.verdict == ("alarm" if 7 in steps else "ok") and track.gold_free


def test_history_at_a_step_knows_nothing_of_later_ones() -> None:
    evidence = CASES["length_drift"][0]
    [track] = history(evidence, ["length_drift"])
    for finding in track.findings:
        upto = replace(evidence, rollouts=[s for s in evidence.rollouts if s.step <= (finding.step or 0)])
        assert examine(upto, ["length_drift"]) == [finding]
    # z at each step is far above 5, and a chart needs no second alarm
    assert (track.first_alarm, track.fired_at) == (1, 1)


def test_a_canary_is_looked_at_when_it_is_new() -> None:
    evidence = Evidence(rollouts=rewards_of_steps(1), canary=[*canary(0, format=lambda i: 1.0), *canary(
        2, format=lambda i: float(i >= 10)), *canary(4, format=lambda i: 1.0)])
    [track] = history(evidence, ["format_pass"])
    assert [(f.step, f.verdict) for f in track.findings] == [(0, "unclear"), (2, "alarm"), (4, "ok")]
    assert track.fired_at is None, "one alarm seen at steps 2 and 3 would not be two"


def test_a_run_of_alarms_broken_by_silence_starts_anew() -> None:
    verdicts = ["alarm", "unclear", "alarm", "alarm"]
    findings = [Finding(name="x", verdict=v, says="", step=i) for i, v in enumerate(verdicts)]  # type: ignore[arg-type]
    assert confirmed(findings, 2) == (2, 3) and confirmed(findings, 3) == (None, None)
