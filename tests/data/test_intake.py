"""Files of what is to be judged: each shape is recognised, and a broken row leaves the store as it was."""

import json

import pytest

from rlhflab.data.intake import read_items, take_file
from rlhflab.data.store import Store
from rlhflab.errors import DataError

GOOD = {"prompt": "2+2?", "a": "4", "b": "5"}


def file_of(folder, *rows):
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(("row", "answers", "meta"), [
    ({**GOOD, "why": "long", "suspect": "a"}, ("4", "5"), {"why": "long", "suspect": "a"}),
    ({"prompt": "2+2?", "chosen": "5", "rejected": "4"}, ("4", "5"), {"chosen": "b"}),
    ({"prompt": "2+2?", "answer": "4"}, ("4", None), {}),
    ({"prompt": "2+2?", "completion": "4", "label": True}, ("4", None), {"label": True})])
def test_each_shape_becomes_an_item_and_what_else_it_tells_is_kept_apart(tmp_path, row, answers, meta):
    (item,), told = read_items(file_of(tmp_path, row))
    assert ((item.a, item.b), dict(item.meta), told) == (answers, meta, [])
    assert item.prompt.messages[0].content == "2+2?" and item.source == "mine.jsonl"


@pytest.mark.parametrize(("row", "sentence"), [
    ({**GOOD, "b": "4"}, "mine.jsonl:2: 'a' and 'b' are equal"),
    ({**GOOD, "gold": "left"}, "'gold' must be one of a, b, tie, both_bad, the verdict"),
    ({**GOOD, "gold": "skip"}, "'gold' must be one of a, b, tie, both_bad, the verdict"),
    ({**GOOD, "judgments": [{"verdict": "c", "annotator": "x"}]}, r"'judgments\[0\].verdict' must be one of a, b"),
    ({**GOOD, "judgments": [{"verdict": "a"}]}, r"'judgments\[0\].annotator' must be text"),
    ({**GOOD, "judgments": [{"verdict": "a", "annotator": "x y"}]}, r"'judgments\[0\]' cannot be used: annotator"),
    ({**GOOD, "judgments": [{"verdict": "a", "annotator": "x", "strength": 2}]}, "strength' must be a number from 0"),
    ({**GOOD, "judgments": [{"verdict": "a", "annotator": "x", "seconds": -1}]}, "seconds' must be a number from 0"),
    ({**GOOD, "judgments": {}}, "'judgments' must be a list")])
def test_a_broken_row_is_named_and_nothing_of_its_file_is_stored(tmp_path, row, sentence):
    store = Store.open(tmp_path / "s.sqlite")
    with pytest.raises(DataError, match=sentence):
        take_file(store, file_of(tmp_path, GOOD, row))
    assert store.counts()["comparisons"] == 0


def test_broken_rows_are_left_out_where_somebody_hears_of_them(tmp_path):
    store, bad = Store.open(tmp_path / "s.sqlite"), []
    path = file_of(tmp_path, {"city": "Bern"}, GOOD, {**GOOD, "b": "4"}, {**GOOD, "judgments": [{"verdict": "c"}]})
    assert take_file(store, path, bad=bad.append) == ((1, 0), (0, 0))
    assert [error.args[0].partition(": ")[0].rpartition(":")[2] for error in bad] == ["1", "3", "4"]
    with pytest.raises(DataError, match=r"mine.jsonl: holds no row that can be judged"):
        take_file(store, file_of(tmp_path, {**GOOD, "b": "4"}), bad=bad.append)


def test_broken_rows_of_another_format_are_left_out_too(tmp_path):
    row, bad = {"prompt": "Hi", "response_a": "Hello.", "response_b": "Go away.", "label": "a"}, []
    items, _ = read_items(file_of(tmp_path, row, {**row, "label": "c"}), bad=bad.append)
    assert len(items) == 1 and "mine.jsonl:2: 'label' must be a, b or tie" in str(bad[0])


def test_a_row_that_holds_nothing_to_judge_names_the_shapes(tmp_path):
    with pytest.raises(DataError, match=r"mine.jsonl:1: 'a' is missing; .* 'chosen' and 'rejected' .* found 'prompt'"):
        read_items(file_of(tmp_path, {"prompt": "2+2?"}))


def test_votes_in_another_format_are_judgments_of_those_it_names(tmp_path):
    row = {"prompt": "Hi", "response_a": "Hello.", "response_b": "Go away.", "label": "a",
           "meta": {"workers": [["w7", "a"], ["w8", "tie"]]}}
    unnamed = {**row, "prompt": "Bye", "meta": {}}
    path = tmp_path / "votes.jsonl"
    path.write_text("\n".join(map(json.dumps, [row, unnamed])) + "\n")
    items, told = read_items(path)
    assert [(item.a, item.b) for item in items] == [("Hello.", "Go away.")] * 2
    assert [(each.annotator, each.opinion.verdict) for each in told] == [("w7", "a"), ("w8", "tie")]


def test_a_demonstration_in_another_kind_of_file_is_nothing_to_judge(tmp_path):
    path = tmp_path / "said.csv"
    path.write_text("prompt,answer\nHi,Hello.\n")
    with pytest.raises(DataError, match=r"said\.csv:2: is a conversation; what is to be judged"):
        read_items(path)
