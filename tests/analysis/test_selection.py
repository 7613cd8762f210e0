"""Which comparisons to label next: each way chooses what it says it does, on scores and texts made by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array

from rlhflab.analysis.bag_of_words import Vocabulary, fit_preferences
from rlhflab.analysis.selection import Label, Pool, ensemble, pool_of, select
from rlhflab.cli import main
from rlhflab.data.types import Comparison, Message, Prompt


def comparison(number: int, a: str, b: str) -> Comparison:
    return Comparison(prompt=Prompt(id=str(number), messages=(Message(role="user", content=f"q{number}"),)), a=a, b=b)


def pool(gaps: list[list[float]], texts: list[list[float]], labelled: list[list[float]] | None = None) -> Pool:
    known = np.array(labelled or [], dtype=float).reshape(-1, len(texts[0]))
    return Pool(np.array(gaps), csr_array(np.array(texts)), csr_array(known))


GAPS = [[3.0, 0.1, 2.0], [3.0, -0.1, -2.0]]
AXES = [[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]]


def test_members_that_differ_and_scores_that_tie_are_not_the_same() -> None:
    assert select(pool(GAPS, AXES), 1, "disagreement") == [2]
    assert set(select(pool(GAPS, AXES), 2, "near_tie")) == {1, 2}, "both have a mean of 0"
    assert select(pool([[3.0, 0.1, 2.0]], AXES), 2, "near_tie") == [1, 2]


def test_coverage_takes_what_is_furthest_from_all_that_is_known() -> None:
    # By cosine to the first axis, which is labelled: 1, .8 and 0. Behind the third, the second is furthest.
    assert select(pool(GAPS, AXES, [[1.0, 0.0, 0.0]]), 3, "coverage") == [2, 1, 0]


def test_a_way_gives_each_number_once_and_lots_follow_the_seed() -> None:
    texts = np.eye(30).tolist()
    gaps = np.random.default_rng(0).normal(size=(4, 30)).tolist()
    for by in ("disagreement", "near_tie", "coverage", "random"):
        chosen = select(pool(gaps, texts), 50, by, seed=3)
        assert sorted(chosen) == list(range(30)), by
        assert chosen == select(pool(gaps, texts), 50, by, seed=3)
    assert select(pool(gaps, texts), 30, "random", seed=3) != select(pool(gaps, texts), 30, "random", seed=4)


def test_an_ensemble_learns_which_word_is_preferred() -> None:
    labels = [Label(comparison(i, "good answer", "bad answer") if i % 2 else comparison(i, "bad answer", "good answer"),
                    bool(i % 2)) for i in range(20)]
    found = pool_of(labels, [comparison(99, "good", "bad"), comparison(98, "bad", "good"), comparison(97, "x", "y")])
    assert found.gaps.shape == (8, 3) and (found.gaps[:, 0] > 0).all() and (found.gaps[:, 1] < 0).all()
    assert (found.gaps[:, 2] == 0).all(), "words of which no label says anything"
    assert ensemble(None, [], members=8, seed=0) == []


def test_tf_idf_by_hand_and_a_text_without_known_words() -> None:
    vocabulary = Vocabulary.of(["a a b", "a c"])
    rarity = {"a": 1.0, "b": 1 + np.log(3 / 2), "c": 1 + np.log(3 / 2)}  # a stands in 2 of 2, b and c in 1
    expected = np.array([(1 + np.log(2)) * rarity["a"], rarity["b"]])
    row = vocabulary.tf_idf(["a a b", "zebra"]).toarray()
    np.testing.assert_allclose(row[0, [vocabulary.column["a"], vocabulary.column["b"]]],
                               expected / np.linalg.norm(expected))
    assert not row[1].any()
    assert vocabulary.counts(["a b a"]).toarray()[0, vocabulary.column["a"]] == 2


def test_a_pair_that_weighs_twice_counts_as_two() -> None:
    features = csr_array(np.array([[1.0, 0.0], [0.0, 1.0], [-0.5, 1.0]]))
    twice = fit_preferences(csr_array(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])))
    np.testing.assert_allclose(fit_preferences(features, weight=np.array([2.0, 1.0, 0.0])), twice, atol=1e-5)


def file_of(path: Path, labelled: int, unlabelled: int) -> Path:
    rows = [{"prompt": f"q{i}", "a": f"good {i}", "b": f"bad {i}",
             "judgments": [{"verdict": "a", "annotator": "x"}] if i < labelled else []}
            for i in range(labelled + unlabelled)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_command_writes_comparisons_nobody_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file_of(tmp_path / "in.jsonl", 20, 6)
    for by in ("disagreement", "coverage", "random"):
        assert main(["data", "select", str(path), "--n", "4", "--by", by, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["chosen"], found["open"], found["labelled"]) == (4, 6, 20)
        written = [json.loads(line) for line in (tmp_path / "in.selected.jsonl").read_text().splitlines()]
        assert len(written) == 4 and all(int(row["a"].split()[1]) >= 20 for row in written)


def test_without_labels_or_without_anything_open_it_says_what_to_do(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "select", str(file_of(tmp_path / "few.jsonl", 3, 6)), "--by", "near_tie"]) == 2
    assert "3 comparisons have a label, and --by near_tie learns from at least 20" in capsys.readouterr().err
    assert main(["data", "select", str(file_of(tmp_path / "all.jsonl", 3, 0))]) == 2
    assert "all 3 comparisons are judged" in capsys.readouterr().err
