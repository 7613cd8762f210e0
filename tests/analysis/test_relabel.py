"""Targeted relabelling: what counts as a failure, clusters that repeat, batches that hold as many of each."""

from collections import Counter

import pytest

from rlhflab.analysis.evidence import Sample
from rlhflab.analysis.recorded import read_samples
from rlhflab.analysis.relabel import (
    Failure,
    by_words,
    clusters_of,
    failure_sign,
    failures_of,
    random_batch,
    stratified,
    targeted_batch,
)
from rlhflab.errors import DataError
from sample_rows import BOAST, rollouts, write

BETTER = {"right": "higher", "format": "higher", "confident_wrong": "lower", "words": "lower"}


def answer(text="At 8 pm.", *, step=5, prompt="p", **more):
    return Sample(step=step, prompt_id=prompt, answer=text, **more)


@pytest.fixture
def recorded(tmp_path):
    return read_samples(write(tmp_path, rollouts=rollouts()) / "rollouts.jsonl")


@pytest.fixture
def unchecked(tmp_path):
    return read_samples(write(tmp_path, rollouts=rollouts(checked=False)) / "rollouts.jsonl")


def test_a_rate_that_should_be_high_fails_at_zero_and_one_that_should_be_low_at_one():
    bad = answer(measures={"right": 0.0, "format": None, "confident_wrong": 1.0, "words": 1.0, "gold": 0.0})
    good = answer(measures={"right": 1.0, "format": 1.0, "confident_wrong": 0.0, "words": 7.0, "gold": 1.0})
    # Words are 1 here and 7 there: no rate, so that a single word is no failure.
    assert failures_of([bad, good], [], BETTER) == [["right", "confident_wrong"], []]


@pytest.mark.parametrize(("sign", "odd"), [
    ("cut off", {"stopped": False}),
    ("over-long", {"text": "word " * 40}),
    ("rewarded and unlikely", {"reference_logprob": -90.0}),
    ("twin disagrees", {"twin": -3.0}),
])
def test_each_sign_flags_the_odd_answer_and_no_usual_one(sign, odd):
    usual = [{"reward": i / 40, "twin": i / 40, "reference_logprob": -3.0 - i / 40, "tokens": 4, "stopped": True}
             for i in range(40)]
    start = [answer(step=0, **each) for each in usual]
    found = failures_of([answer(**each) for each in usual[:30]] + [answer(**{**usual[39], **odd})], start, {})
    assert sign in found[-1] and not any(found[:-1])


def test_a_phrase_that_only_the_late_answers_use_is_over_used():
    start = [answer(f"The room {i} is open at {i} pm.", step=0) for i in range(40)]
    late = [answer(f"Certainly clearly stated: room {i}.") for i in range(40)]
    flags = failure_sign.entry("over-used phrase", where="test").function([*late, *start], start)
    assert flags[:40].all() and not flags[40:].any()


def test_without_answers_of_the_start_no_sign_is_read():
    assert failures_of([answer("word " * 90)], [answer(step=0)] * 15, {}) == [[]]


def test_answers_cluster_by_their_words_and_are_named_by_them():
    texts = [
        *(f"certainly this is clearly stated {i}" for i in range(20)), *(f"sorry i cannot say {i}" for i in range(12))]
    groups = by_words(texts)
    assert len(groups) > 1 and sorted(i for _, group in groups for i in group) == list(range(32))
    assert all(len({texts[i].split()[0] for i in group}) == 1 for _, group in groups)
    assert any("certainly" in marks or "certainly this" in marks for marks, _ in groups)
    assert by_words(texts) == groups
    assert by_words(["same"] * 40) == [((), list(range(40)))]


def test_clusters_are_by_kind_first_and_hold_an_answer_once():
    failures = [Failure(answer(f"a {i}", prompt=f"p{i}", reward=float(i)), ("right",), answer("b")) for i in range(5)]
    failures += [Failure(answer("x", prompt="q"), ("format", "right"), answer("b"))] * 2
    found = clusters_of(failures)
    assert {name: len(group) for name, group in found.items()} == {"right": 5, "format + right": 1}
    assert [each.sample.reward for each in found["right"]] == [4, 3, 2, 1, 0], "the most rewarded first"


def test_a_batch_takes_of_each_cluster_in_turn_and_other_prompts_first():
    def group(name, prompts):
        return [Failure(answer(f"{name} {i}", prompt=prompt), (name,), answer("b")) for i, prompt in enumerate(prompts)]

    clusters = {"big": group("big", ["p", "p", "q", "r"]), "small": group("small", ["p"]), "mid": group("mid", "pq")}
    chosen = stratified(clusters, 6)
    assert Counter(name for name, _ in chosen) == {"big": 3, "mid": 2, "small": 1}
    assert [each.sample.prompt_id for name, each in chosen if name == "big"] == ["p", "q", "r"]
    assert len(stratified(clusters, 100)) == 7


def test_failures_are_the_late_ones_beside_a_better_answer_to_the_same_prompt(recorded):
    batch = targeted_batch(recorded, better=BETTER, n=12)
    assert len(batch.proposals) == 12 and set(Counter(each.cluster for each in batch.proposals).values()) <= {5, 6, 7}
    for each in batch.proposals:
        assert each.suspect.step > 6 and each.suspect.prompt_id == each.better.prompt_id
        assert each.better.measures["gold"] > each.suspect.measures["gold"]
        assert each.better.measures["gold"] == 1.0 and each.better.step <= 1, "the start's answers come first"
        assert f"step {each.suspect.step}, reward" in each.why
    assert {kinds for kinds in (each.kinds for each in batch.proposals)} == {("right", "format"), ("format",)}
    assert targeted_batch(recorded, better=BETTER, n=12) == batch


def test_without_gold_the_signs_find_the_same_answers(unchecked):
    batch = targeted_batch(unchecked, better=BETTER, n=12)
    assert len(batch.proposals) == 12
    assert sum(each.suspect.answer.startswith("Certainly!") for each in batch.proposals) > 6
    assert not any(each.better.answer.startswith("Certainly!") for each in batch.proposals)
    assert {"over-long", "over-used phrase"} <= {kind for each in batch.proposals for kind in each.kinds}


def test_a_failure_that_nothing_can_be_compared_with_is_counted_until_something_can():
    lone = [answer(step=0, prompt="other", measures={"right": 1.0}),
            answer(BOAST, step=9, prompt="p", measures={"right": 0.0})]
    batch = targeted_batch(lone, better=BETTER, n=4)
    assert (batch.proposals, batch.alone) == ([], 1)
    fresh = answer("At 8 pm.", step=0, prompt="p", measures={"right": 1.0})
    assert targeted_batch(lone, better=BETTER, n=4, extra=[fresh]).proposals[0].better is fresh


def test_a_random_batch_is_of_distinct_prompts_and_follows_its_seed(recorded):
    batch = random_batch(recorded, n=10, seed=1)
    assert len({each.suspect.prompt_id for each in batch.proposals}) == 10
    assert all(each.suspect.answer != each.better.answer for each in batch.proposals)
    assert random_batch(recorded, n=10, seed=1) == batch != random_batch(recorded, n=10, seed=2)


def test_a_run_without_failures_says_what_would_show_one():
    with pytest.raises(DataError, match=r"no answer from step 2 on shows a failure.*16 answers of the start"):
        targeted_batch([answer(step=0), answer(step=1)], better=BETTER, n=4)


@pytest.mark.parametrize(("row", "sentence"), [
    ({"prompt_id": "p", "answer": "a"}, "rollouts.jsonl:1: 'step' is missing"),
    ({"step": -1, "prompt_id": "p", "answer": "a"}, "'step' must be a whole number"),
    ({"step": 1, "prompt_id": 3, "answer": "a"}, "'prompt_id' must be text"),
    ({"step": 1, "prompt_id": "p", "answer": "a", "reward": float("nan")}, "'reward' must be a finite number"),
    ({"step": 1, "prompt_id": "p", "answer": "a", "measures": {"gold": "x"}}, "'measures.gold' must be a finite"),
    ({"step": 1, "prompt_id": "p", "answer": "a", "members": 2}, "'members' must be a list"),
])
def test_a_row_that_is_no_sample_is_named(row, sentence, tmp_path):
    with pytest.raises(DataError, match=sentence):
        read_samples(write(tmp_path, rollouts=[row]) / "rollouts.jsonl")
