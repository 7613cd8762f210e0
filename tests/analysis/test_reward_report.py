"""The record of a reward model: against hand-worked numbers, and scorers whose worth is known get the right verdict."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from judged_pairs import TASK, by_gold, by_length, judged_pairs
from report_pages import EVIL, Page
from rlhflab.analysis.perturbations import Case, Text
from rlhflab.analysis.reward_page import main_table, write_reward_page
from rlhflab.analysis.reward_probes import Styled, cases, drawn_changes, judge_probes, style_matrix
from rlhflab.analysis.reward_quality import ordered_by_words
from rlhflab.analysis.reward_report import (
    LIMITS,
    Record,
    Scorer,
    evidence_probes,
    fitness,
    reward_record,
)
from rlhflab.core.stats import Estimate
from rlhflab.data.types import Message, PreferencePair, Prompt
from rlhflab.errors import DataError, RunError

GOOD, BAD, EVEN = Estimate(0.8, 0.7, 0.9, 64), Estimate(0.2, 0.1, 0.3, 64), Estimate(0.5, 0.4, 0.6, 64)


@pytest.fixture(scope="module")
def honest() -> Record:
    train, held_out = judged_pairs()
    return reward_record(by_gold([*train, *held_out]), train, held_out, task=TASK)


def pair(name: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(prompt=Prompt(id=name, messages=(Message(role="user", content=name),)), chosen=chosen,
                          rejected=rejected)


# -- verdicts ------------------------------------------------------------------------------------------------------


def test_a_scorer_that_knows_what_is_right_is_fit(honest: Record) -> None:
    assert honest["verdict"] == "fit" and honest["reasons"] == []
    assert {probe["result"] for probe in honest["probes"]} == {"pass"} and len(honest["probes"]) == 12
    assert honest["gold_order"]["mean"] == honest["style"]["hard"]["mean"] == 1.0
    assert honest["accuracy"]["mean"] < honest["noise_ceiling"]["accuracy"] < 1, "annotators err, so gold is not 1"
    assert honest["over_length"]["mean"] == pytest.approx(honest["accuracy"]["mean"] - honest["length_only"]["mean"])


def test_a_scorer_of_length_is_unfit_and_the_reasons_name_it() -> None:
    train, held_out = judged_pairs()
    found = reward_record(by_length, train, held_out, task=TASK)
    assert found["verdict"] == "unfit"
    against = {reason["rule"] for reason in found["reasons"] if reason["level"] == "unfit"}
    assert {"length", "hard accuracy", "artefact probes", "damage probes"} <= against
    assert found["length"]["within_prompt"]["mean"] == pytest.approx(1)
    assert found["length"]["longer_by_scores"]["mean"] == 1 and found["style"]["easy"]["mean"] > 0.9
    assert [reason["level"] for reason in found["reasons"]] == sorted(
        (reason["level"] for reason in found["reasons"]), reverse=True), "unfit before risky"


def test_what_is_right_with_a_taste_for_length_is_neither_fit_nor_hopeless() -> None:
    train, held_out = judged_pairs()
    gold = by_gold([*train, *held_out])

    def score(texts: Sequence[Text]) -> list[float]:
        return [value + length / 100 for value, length in zip(gold(texts), by_length(texts), strict=True)]

    found = reward_record(score, train, held_out, task=TASK)
    assert found["verdict"] in ("risky", "unfit")
    failed = {probe["name"] for probe in found["probes"] if probe["result"] == "fail"}
    assert {"filler", "repetition"} <= failed and not {"entity_swapped", "opinion"} & failed


def probe(name: str, result: str, preferred: Estimate = GOOD) -> dict[str, Any]:
    return {"name": name, "summary": "So.", "result": result, "preferred": preferred}


def record(**changed: Any) -> Record:
    """A record nothing speaks against, but for what is `changed`."""
    return {"accuracy": GOOD._asdict(), "over_length": GOOD, "over_words": GOOD, "gold_order": None,
            "length": {"within_prompt": None}, "style": None, "probes": [probe("filler", "pass")], **changed}


@pytest.mark.parametrize(("changed", "level", "rule"), [
    ({"accuracy": EVEN._asdict()}, "unfit", "accuracy"),
    ({"over_length": Estimate(-0.1, -0.2, 0.1, 9)}, "unfit", "length alone"),
    ({"over_length": Estimate(0.1, -0.1, 0.3, 9)}, "risky", "length alone"),
    ({"over_words": Estimate(0.1, -0.1, 0.3, 9)}, "risky", "bag of words"),
    ({"gold_order": BAD._asdict()}, "unfit", "gold order"), ({"gold_order": EVEN._asdict()}, "risky", "gold order"),
    ({"length": {"within_prompt": Estimate(0.3, 0.2, 0.4, 9)}}, "risky", "length"),
    ({"length": {"within_prompt": Estimate(0.6, 0.5, 0.7, 9)}}, "unfit", "length"),
    ({"style": {"hard": BAD, "easy": GOOD}}, "unfit", "hard accuracy"),
    ({"style": {"hard": EVEN, "easy": GOOD}}, "risky", "hard accuracy"),
    ({"style": {"hard": GOOD, "easy": BAD}}, "risky", "easy accuracy"),
    ({"probes": [probe("filler", "fail")]}, "risky", "artefact probes"),
    ({"probes": [probe(name, "fail") for name in ("filler", "typos", "certainly")]}, "unfit", "artefact probes"),
    ({"probes": [probe("gibberish", "fail", GOOD)]}, "unfit", "damage probes"),
    ({"probes": [probe("gibberish", "fail", BAD)]}, "risky", "damage probes"),
    ({"probes": [probe("filler", "pass"), probe("typos", "too few"), probe("opinion", "too few")]}, "risky",
     "coverage"),
])
def test_each_rule_speaks_on_its_own(changed: Record, level: str, rule: str) -> None:
    found = fitness(record(**changed))
    assert found["verdict"] == level
    assert [(reason["level"], reason["rule"]) for reason in found["reasons"]] == [(level, rule)] and rule in LIMITS


def test_without_a_reason_it_is_fit() -> None:
    assert fitness(record())["verdict"] == "fit"
    harmless = {"length": {"within_prompt": Estimate(-0.9, -1, -0.8, 9)}, "style": {"hard": GOOD, "easy": EVEN},
                "probes": [probe("filler", "unclear"), probe("gibberish", "pass", BAD)]}
    assert fitness(record(**harmless))["verdict"] == "fit"


# -- what cannot be judged -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("score", "says"), [
    (lambda texts: [1.0] * len(texts), r"gives all \d+ held-out answers the same score"),
    (lambda texts: [math.nan] * len(texts), "no finite numbers"), (lambda texts: [None] * len(texts), "is too long")])
def test_scores_that_say_nothing_are_refused(score: Scorer, says: str) -> None:
    train, held_out = judged_pairs()
    with pytest.raises((RunError, DataError), match=says):
        reward_record(score, train, held_out, task=TASK)


def test_too_few_pairs_are_refused_with_the_number_needed() -> None:
    train, held_out = judged_pairs()
    with pytest.raises(DataError, match=r"19 held-out pairs are too few .* at least 20"):
        reward_record(by_length, train, held_out[:19], task=None)


def test_a_changed_answer_that_is_too_long_to_read_is_left_out() -> None:
    train, held_out = judged_pairs()
    most = max(len(text) for pair in held_out for text in (pair.chosen, pair.rejected))
    found = reward_record(lambda texts: [float(len(t.answer)) if len(t.answer) <= most else None for t in texts], train,
                          held_out, task=TASK)
    sizes = {probe["name"]: probe["n"] for probe in found["probes"]}
    assert sizes["repetition"] < 64 == sizes["truncated"]
    assert {name: len(each) for name, each in evidence_probes(found).items()} == sizes


# -- statistics ----------------------------------------------------------------------------------------------------


def test_probes_need_a_sign_test_and_a_size() -> None:
    changes = {
        "filler": [0.2] * 64, "certainly": [0.02] * 30 + [-0.02] * 34,  # preferred; not preferred
        "typos": [0.5] * 11 + [-0.1] * 9,  # .55 of the answers and +.23 deviations, but p is far from small
        "bold_bullets": [0.3] * 11, "entity_swapped": [-0.6] * 40, "gibberish": [-0.4] * 40,  # few; enough; not
        "fabricated": [0.0] * 40}
    found = {each.name: each for each in judge_probes(changes)}
    assert {name: each.result for name, each in found.items()} == {
        "filler": "fail", "certainly": "pass", "typos": "unclear", "bold_bullets": "too few", "entity_swapped": "pass",
        "gibberish": "fail", "fabricated": "fail"}
    assert found["filler"].p == pytest.approx(2 * 0.5**64 * 6), "the smallest of six tests made"
    assert found["fabricated"].p == 1 and found["fabricated"].preferred is not None
    assert found["fabricated"].preferred.mean == 0.5 and found["bold_bullets"].p is None


def test_the_style_matrix_is_rm_benchs() -> None:
    prompts = [(Message(role="user", content=str(i)),) for i in range(12)]
    each = [Styled(*(tuple(Text(prompt, f"{side}{style}") for style in range(3)) for side in "rw"))
            for prompt in prompts]
    # the right answer has 1.5, and each step of style adds 1 to either side: right - wrong = 1.5 + i - j
    scores = {text: (1.5 if text.answer[0] == "r" else 0) + int(text.answer[1]) for one in each
              for text in (*one.right, *one.wrong)}
    found = style_matrix(each, scores)
    assert found is not None
    assert [[cell.mean for cell in row] for row in found.accuracy] == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    assert (found.easy.mean, found.normal.mean, found.hard.mean) == (1, 1, pytest.approx(2 / 3))
    assert found.hard.low < 2 / 3 < found.hard.high and found.hard.n == 36
    assert style_matrix(each[:11], scores) is None


def test_a_bag_of_words_learns_the_word_that_wins_and_knows_no_other() -> None:
    train = [pair(f"t{i}", f"yes {i}", f"no {i}") for i in range(20)]
    held_out = [pair("a", "Yes, indeed", "no"), pair("b", "no", "yes"), pair("c", "perhaps", "indeed")]
    assert ordered_by_words(train, held_out).tolist() == [1.0, 0.0, 0.5]
    assert ordered_by_words([], held_out).tolist() == [0.5] * 3


def test_the_bag_of_words_orders_as_a_plain_twin_does() -> None:
    random = np.random.default_rng(0)

    def drawn(n: int) -> list[PreferencePair]:
        sides = [[" ".join(random.choice(list("abcdef"), 4)) for _ in range(2)] for _ in range(n)]
        return [pair(str(i), *sorted(texts, key=lambda text: text.count("a") - text.count("b") + random.normal()))
                for i, texts in enumerate(sides)]

    train, held_out = drawn(60), drawn(40)
    seen, unseen = (np.array([[p.chosen.count(c) - p.rejected.count(c) for c in "abcdef"] for p in part], dtype=float)
                    for part in (train, held_out))
    weights = np.zeros(6)
    for _ in range(5000):  # of sum log(1 + exp(-gap)) + |w|^2 / 2
        weights -= 0.01 * (weights - seen.T @ (1 / (1 + np.exp(seen @ weights))))
    expected = 0.5 + 0.5 * np.sign(np.round(unseen @ weights, 6))
    assert ordered_by_words(train, held_out).tolist() == expected.tolist() and expected.mean() > 0.6


def test_cases_take_what_is_right_from_gold_and_without_it_from_the_labels() -> None:
    prompt = next(p for p in TASK.prompts("rl", 20) if p.facts["answerable"] and p.facts["demand"] == "none")
    wrong = prompt.facts["sentence"].replace(prompt.facts["right"], prompt.facts["wrong_values"][0])
    mislabelled = PreferencePair(prompt=prompt, chosen=wrong, rejected=prompt.facts["sentence"])
    assert cases([mislabelled, mislabelled], TASK) == [
        Case(prompt=prompt, answer=wrong, right=prompt.facts["sentence"], wrong=wrong)]
    assert cases([mislabelled], None) == [
        Case(prompt=prompt, answer=wrong, right=wrong, wrong=prompt.facts["sentence"])]
    both_wrong = PreferencePair(prompt=prompt, chosen=wrong, rejected="It is so.")
    (case,) = cases([both_wrong], TASK)
    assert case.right == prompt.facts["sentence"], "nobody said it, so the scenario does"


def test_cases_and_changes_are_the_same_for_the_same_seed() -> None:
    _, held_out = judged_pairs()
    drawn = cases(held_out, TASK, seed=1)
    assert drawn_changes(drawn, most=9) == drawn_changes(cases(held_out, TASK, seed=1), most=9)
    assert {len(each) for each in drawn_changes(drawn, most=9).values()} == {9}
    assert [case.prompt.id for case in drawn] != [case.prompt.id for case in cases(held_out, TASK, seed=2)]


# -- the page ------------------------------------------------------------------------------------------------------


def test_the_record_is_json_and_the_table_has_the_verdict_first(honest: Record) -> None:
    assert json.loads(json.dumps(honest, allow_nan=False)) == honest
    rows = main_table(honest)
    assert rows[0] == {"what": "verdict", "value": "FIT", "note": ""}
    assert {f"probe {probe['name'].replace('_', ' ')}" for probe in honest["probes"]} <= {row["what"] for row in rows}


def test_the_page_shows_every_part_and_loads_nothing(honest: Record, tmp_path: Path) -> None:
    page = Page(write_reward_page({**honest, "role": "runs/a/roles/reward"}, tmp_path / "reward_report.html"))
    headings = [attributes["id"] for tag, attributes in page.elements if tag == "h2"]
    assert headings == ["verdict", "accuracy", "probes", "style", "length", "calibration", "rules"]
    assert [tag for tag, _ in page.elements].count("h1") == 1 and len(page.figures) == 5
    assert not [name for _, attributes in page.elements for name in attributes if name in ("src", "srcset")]
    assert "Fit: nothing measured here" in page.text and "entity swapped" in page.text
    policy = next(attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'")
    assert [path.name for path in tmp_path.iterdir()] == ["reward_report.html"]


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    held_out = [pair(f"{EVIL} {i}", f"{EVIL} is {i} and it is longer", f"{EVIL} {i}") for i in range(30)]
    found = reward_record(by_length, held_out, held_out, task=None)
    assert any(probe["result"] == "fail" and EVIL in probe["example"]["after"] for probe in found["probes"])
    evil = {key: EVIL for key in ("role", "model", "data", "seed", "scenario")}
    found["reasons"][0]["says"] = EVIL
    page = Page(write_reward_page({**found, **evil}, tmp_path / "page.html"))
    assert [kind for kind, _ in page.scripts if kind is None] == [None, None]
    assert not any(tag == "img" or name.startswith("on") for tag, attributes in page.elements for name in attributes)
    assert page.text.count("</script><script>alert(1)</script>") >= 6
    assert all("<" not in text for kind, text in page.scripts if kind == "application/json")


def test_a_record_without_scenario_style_or_enough_answers_still_makes_a_page(tmp_path: Path) -> None:
    held_out = [pair(f"q{i % 4}", f"{i} aa", f"{i}") for i in range(24)]
    found = reward_record(by_length, held_out, held_out, task=None)
    assert found["style"] is None and {probe["result"] for probe in found["probes"]} == {"too few"}
    assert found["verdict"] == "unfit" and "coverage" in {reason["rule"] for reason in found["reasons"]}
    text = Page(write_reward_page(found, tmp_path / "page.html")).text
    assert "too few" in text and "None" not in text.replace("None of", "") and "nan" not in text.split()
