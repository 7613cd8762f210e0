"""From judgments to pairs: what each rule makes of them, the same bytes each time, and what was left out and why."""

import hashlib
import json

import pytest

from annotation_stores import item, judge_next, store_with
from rlhflab.data.export import Decision, Rule, Undecided, decide, export, judged
from rlhflab.data.formats import read_pairs, read_thumbs
from rlhflab.data.intake import take_file
from rlhflab.data.judging import Opinion, Said, Told
from rlhflab.data.store import Store
from rlhflab.errors import ConfigError, DataError


def said(verdict, annotator="anna", *, strength=1.0, purpose="judge"):
    return Said(id=1, comparison_id=1, assignment_id=1, annotator=annotator, purpose=purpose, verdict=verdict,
                strength=strength, tags=(), reason="", shown_first="a", seconds=None, at=None, corrects=None,
                author=annotator, why="")


@pytest.mark.parametrize(("verdicts", "rule", "outcome"), [
    (["a", "a", "b"], Rule(), Decision("a", 2 / 3, "majority 2 of 3")),
    (["a", "b"], Rule(), Undecided("without enough agreement")),
    (["a", "b", "skip"], Rule(), Undecided("without enough agreement")),
    (["b", "skip"], Rule(), Decision("b", 1.0, "anna")),
    (["tie", "tie", "a"], Rule(), Undecided("judged tie")),
    (["a", "tie"], Rule(), Undecided("without enough agreement")),
    (["a", "a", "b"], Rule(min_agreement=0.7), Undecided("without enough agreement")),
    (["a"], Rule(min_judgments=2), Undecided("with too few judgments")),
    (["skip"], Rule(), Undecided("not judged")),
])
def test_a_majority_is_more_than_half_of_what_was_not_skipped(verdicts, rule, outcome):
    assert decide([said(verdict) for verdict in verdicts], rule) == outcome


def test_the_strength_of_a_majority_is_its_share_times_the_mean_strength_of_its_voters():
    votes = [said("a", strength=1.0), said("a", strength=0.5), said("b", strength=1.0)]
    assert decide(votes, Rule(name="majority")).strength == pytest.approx(2 / 3 * 0.75)


def test_an_adjudicator_decides_against_the_majority_unless_the_rule_leaves_them_out():
    votes = [said("a"), said("a", "ben"), said("b", "carol", purpose="adjudicate")]
    assert decide(votes, Rule()) == Decision("b", 1.0, "carol")
    assert decide(votes, Rule(name="majority")) == Decision("a", 1.0, "majority 2 of 2")
    assert decide([*votes[:2], said("skip", "carol", purpose="adjudicate")], Rule()).verdict == "a"
    assert decide([*votes, said("both_bad", "carol", purpose="adjudicate")], Rule()) == Undecided("judged both_bad")


def test_what_repeats_an_earlier_judgment_is_no_vote():
    assert decide([said("a"), said("b", purpose="repeat")], Rule()) == Decision("a", 1.0, "anna")


@pytest.fixture
def store(place):
    """Four comparisons, one of them an attention check: agreed on a, in conflict, and a tie."""
    store = store_with(place, 4, overlap=2, gold=1)
    for name, verdicts in (("anna", ("a", "a", "tie")), ("ben", ("a", "b", "tie"))):
        for verdict in verdicts:
            judge_next(store, name, verdict, strength=0.5, reason="so", tags=("b:verbose",), seconds=2.0)
    return store


def test_an_export_reads_back_as_pairs_and_its_sidecar_says_what_was_left_out(store, tmp_path):
    done = export(store, tmp_path / "pairs.jsonl")
    (pair,) = read_pairs(done.path)
    assert (pair.prompt.id, pair.chosen, pair.rejected) == ("p1", "right", "wrong")
    assert (pair.strength, pair.source) == (0.5, "majority 2 of 2")
    record = json.loads((tmp_path / "pairs.export.json").read_text())
    assert record["left_out"] == {"attention checks": 1, "judged tie": 1, "without enough agreement": 1}
    assert record["rule"] == {"name": "adjudicated", "min_judgments": 1, "min_agreement": 0.5}
    assert record["sha256"] == hashlib.sha256(done.path.read_bytes()).hexdigest()
    assert record["judgments"]["rows"] == 6


def test_each_judgment_can_be_a_pair(store, tmp_path):
    pairs = read_pairs(export(store, tmp_path / "p.jsonl", rule=Rule(name="each")).path)
    assert [(pair.prompt.id, pair.chosen, pair.source) for pair in pairs] == [
        ("p1", "right", "anna"), ("p1", "right", "ben"), ("p2", "right", "anna"), ("p2", "wrong", "ben")]


def test_the_same_store_gives_the_same_bytes_and_one_more_judgment_another_digest(store, tmp_path):
    first, second = (export(store, tmp_path / folder / "p.jsonl") for folder in ("one", "two"))
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.sidecar.read_bytes() == second.sidecar.read_bytes()
    store.correct(3, "both_bad", author="lead", why="slip")
    assert export(store, tmp_path / "p.jsonl").record["judgments"]["sha256"] != first.record["judgments"]["sha256"]


def test_everything_that_was_said_goes_to_another_store_and_back(store, tmp_path):
    first = export(store, tmp_path / "all.jsonl", shape="judged")
    other = Store.open(tmp_path / "other.sqlite")
    assert take_file(other, first.path) == ((4, 0), (6, 0))
    assert take_file(other, first.path) == ((0, 4), (0, 6))
    assert export(other, tmp_path / "again.jsonl", shape="judged").path.read_bytes() == first.path.read_bytes()
    assert list(judged(other)) == list(judged(store))
    assert [each.verdict for each in list(judged(store))[2].judgments] == ["a", "b"]


def test_thumbs_are_exported_by_the_same_rules(tmp_path):
    store = Store.open(tmp_path / "s.sqlite")
    store.add([item(i, b=None) for i in range(2)])
    store.add_judgments(Told(item=item(i, b=None), annotator=name, purpose="judge", opinion=Opinion(verdict=verdict))
                        for i, name, verdict in ((0, "anna", "bad"), (1, "anna", "good"), (1, "ben", "bad")))
    done = export(store, tmp_path / "t.jsonl", shape="thumbs")
    assert [(thumb.prompt.id, thumb.good) for thumb in read_thumbs(done.path)] == [("p0", False)]
    assert done.record["left_out"] == {"without enough agreement": 1}


def test_an_export_of_nothing_says_why_and_writes_nothing(store, tmp_path):
    with pytest.raises(DataError, match=r"gives no thumbs \(4 of the other kind\)"):
        export(store, tmp_path / "t.jsonl", shape="thumbs")
    with pytest.raises(ConfigError, match=r"--min-agreement 1\.5: must be from 0 to 1"):
        export(store, tmp_path / "t.jsonl", rule=Rule(min_agreement=1.5))
    with pytest.raises(ConfigError, match=r"t.csv: an export is JSONL, in a file that ends in .jsonl or .jsonl.gz"):
        export(store, tmp_path / "t.csv")
    assert not (tmp_path / "t.jsonl").exists()
