"""What a row of each data format says, and that what is written reads back equal."""

import json

import pytest

from rlhflab.data.formats import Row, pair_row, read_pairs, write_jsonl
from rlhflab.data.forms import data_format, in_order
from rlhflab.data.forms.transcripts import as_transcript, transcript
from rlhflab.data.reading import detect_form, pairs_of, read_items
from rlhflab.data.types import Comparison, Conversation, Judged, Judgment, Message, PreferencePair, Prompt, Thumb
from rlhflab.errors import ConfigError, DataError

USER, REPLY = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
ASK = Message(role="user", content="2+2?")


def items_of(folder, *rows, form=None):
    """The items of a JSONL file of these rows."""
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [located.item for located in read_items(path, form=form)]


def only(folder, row, form=None):
    """The comparison, and what was said of it as (annotator, verdict)."""
    item, = items_of(folder, row, form=form)
    return (item.comparison.prompt.messages, item.comparison.a, item.comparison.b,
            [(said.annotator, said.verdict) for said in item.judgments])


@pytest.mark.parametrize("name", data_format.names())
def test_the_example_of_each_format_is_recognised_and_read(tmp_path, name):
    row = dict(in_order()[name].example)
    assert items_of(tmp_path, row) == items_of(tmp_path, row, form=name) != []
    assert detect_form(tmp_path / "mine.jsonl") == name
    assert set(data_format.entry(name, where="here").needs) <= set(row)


@pytest.mark.parametrize("name", [name for name, form in in_order().items() if form.row])
def test_what_is_written_reads_back_equal_and_has_the_columns_of_the_example(tmp_path, name):
    form = in_order()[name]
    item, = items_of(tmp_path, form.example)
    record = next(pairs_of(item)) if form.holds is PreferencePair else item
    row = form.row(record)
    assert set(row) == set(form.example)
    again, = items_of(tmp_path, row, form=name)
    assert (next(pairs_of(again)) if form.holds is PreferencePair else again) == record


@pytest.mark.parametrize("row", [
    {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    {"prompt": [USER], "chosen": [REPLY], "rejected": "5"},
    {"chosen": [USER, REPLY], "rejected": [USER, {"role": "assistant", "content": "5"}]},
    {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"},
    {"prompt": "\n\nHuman: 2+2?\n\nAssistant:", "chosen": " 4", "rejected": " 5"},
    {"conversations": [{"from": "human", "value": "2+2?"}], "chosen": {"from": "gpt", "value": "4"},
     "rejected": {"from": "gpt", "value": "5"}},
    {"instruction": "2+2?", "input": "", "chosen": "4", "rejected": "5"},
    {"instruction": "2+2?", "output": ["4", "5"]},
    {"instruction": "2+2?", "completions": [{"response": "4", "overall_score": 2}, {"response": "5", "score": 1.5}]},
    {"prompt": "2+2?", "responses": ["4", "5"], "scores": [1, 0]},
    {"conversation_a": [USER, REPLY], "conversation_b": [USER, {"role": "assistant", "content": "5"}],
     "winner": "model_a"},
    {"prompt": "2+2?", "response_a": "4", "response_b": "5", "label": "a", "votes": None},
    {"prompt": "2+2?", "a": "4", "b": "5", "verdict": "a"},
])
def test_every_format_of_one_preference_says_the_same(tmp_path, row):
    assert only(tmp_path, row) == ((ASK,), "4", "5", [("", "a")])


def test_a_ranked_tree_is_a_comparison_for_every_two_ranked_siblings(tmp_path):
    def said(text, rank=None, replies=(), role="assistant", **more):
        return {"message_id": text, "role": role, "text": text, "rank": rank, "replies": list(replies), **more}

    deeper = said("Sure?", role="prompter", replies=[said("Yes.", 1), said("No.", 0)])
    tree = said("2+2?", role="prompter", replies=[said("5", 2), said("4", 0, [deeper]), said("four", 1), said("?"),
                                                  said("gone", 3, deleted=True)])
    found = items_of(tmp_path, {"message_tree_id": "t", "prompt": tree})
    assert [(each.comparison.a, each.comparison.b, each.judgments[0].verdict) for each in found] == [
        ("5", "4", "b"), ("5", "four", "b"), ("4", "four", "a"), ("Yes.", "No.", "b")]
    assert [turn.content for turn in found[3].comparison.prompt.messages] == ["2+2?", "4", "Sure?"]
    assert found[0].comparison.prompt.id == "2+2?" and found[3].comparison.prompt.id == "Sure?"
    assert found[0].meta == {"tree": "t", "rank_a": 2, "rank_b": 0, "synthetic": False}


def test_equal_scores_tie_and_an_answer_without_a_score_is_not_compared(tmp_path):
    found = items_of(tmp_path, {"prompt": "2+2?", "completions": [
        {"response": "4", "score": 3}, {"response": "four", "score": 3}, {"response": "?", "score": None}]})
    assert [(each.comparison.a, each.comparison.b, each.judgments[0].verdict) for each in found] == [
        ("4", "four", "tie")]
    with pytest.raises(DataError, match=r"'completions' must hold at least two answers with a score, found 1"):
        items_of(tmp_path, {"prompt": "2+2?", "completions": [{"response": "4", "score": 3}, {"response": "5"}]})


def test_the_set_that_a_prompt_is_from_scored_no_answer(tmp_path):
    row = {"source": "evol_instruct", "instruction": "2+2?", "completions": [
        {"response": "4", "overall_score": 9}, {"response": "5", "overall_score": 2}]}
    assert only(tmp_path, row)[3] == [("", "a")]
    assert [pair.source for pair in pairs_of(items_of(tmp_path, row)[0])] == ["evol_instruct"]


def test_votes_by_worker_are_judgments_and_votes_by_count_are_nobodys(tmp_path):
    row = {"prompt": "2+2?", "response_a": "4", "response_b": "5", "label": "a", "votes": {"a": 2, "b": 0, "tie": 1}}
    assert only(tmp_path, row)[3] == [("", "a"), ("", "a"), ("", "tie")]
    row["meta"] = {"workers": [[7, "a"], [8, "tie"], [9, "a"]], "gpt4": "b"}
    assert only(tmp_path, row)[3] == [("7", "a"), ("8", "tie"), ("9", "a")]
    row["votes"]["b"] = 1
    with pytest.raises(DataError, match=r"'votes' counts other verdicts than those in meta\.workers"):
        only(tmp_path, row)


def test_a_gap_of_ranks_is_kept_beside_the_judgment_whose_strength_ends_at_one(tmp_path):
    row = {"prompt": "2+2?", "response_a": "4", "response_b": "5", "label": "a", "strength": 3}
    item, = items_of(tmp_path, row)
    assert item.judgments[0].strength == 1.0 and item.meta == {"strength": 3}
    assert in_order()["shared"].row(item)["strength"] == 3
    item, = items_of(tmp_path, {**row, "strength": 0.25})
    assert item.judgments[0].strength == 0.25 and item.meta == {}


def test_a_prompt_that_is_a_transcript_becomes_turns(tmp_path):
    row = {"prompt": "Human: Hi\n\nAssistant: Hello.\n\nHuman: 2+2?", "response_a": "4", "response_b": "5",
           "label": "b"}
    turns = only(tmp_path, row)[0]
    assert [(turn.role, turn.content) for turn in turns] == [("user", "Hi"), ("assistant", "Hello."), ("user", "2+2?")]
    assert as_transcript(turns) == row["prompt"]


def test_a_speakers_name_within_a_text_cannot_be_written_as_a_transcript():
    named = Message(role="user", content="Say:\n\nHuman: hello")
    assert as_transcript([named]) is None and as_transcript([Message(role="system", content="Be brief.")]) is None
    quoted = Message(role="user", content="Human: hello, or Assistant: hello?")
    assert transcript(Row(path="mine", line=1, values={}), as_transcript([quoted]), "prompt") == (quoted,)


def test_a_transcript_whose_turns_differ_before_the_answer_is_named(tmp_path):
    with pytest.raises(DataError, match=r"mine.jsonl:1: 'rejected' differs from 'chosen' before its last turn"):
        items_of(tmp_path, {"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 3?\n\nAssistant: 5"})


@pytest.mark.parametrize(("row", "item"), [
    ({"question": "2+2?", "answer": "4", "label": 1},
     Thumb(prompt=Prompt(id="mine:1", messages=(ASK,)), answer="4", good=True)),
    ({"instruction": "2+2?", "output": "4", "kto_tag": False},
     Thumb(prompt=Prompt(id="mine:1", messages=(ASK,)), answer="4", good=False)),
    ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}], "kto_tag": True},
     Thumb(prompt=Prompt(id="mine:1", messages=(ASK,)), answer="4", good=True)),
    ({"instruction": "2+2?", "output": "4"},
     Conversation(id="mine:1", messages=(ASK, Message(role="assistant", content="4")))),
    ({"question": "2+2?", "answer": "4"},
     Conversation(id="mine:1", messages=(ASK, Message(role="assistant", content="4")))),
    ({"messages": [USER]}, Prompt(id="mine:1", messages=(ASK,))),
])
def test_thumbs_demonstrations_and_prompts_of_other_tools_are_read(tmp_path, row, item):
    assert items_of(tmp_path, row) == [item]


def test_alpaca_has_history_and_system_before_its_instruction_and_input_below_it(tmp_path):
    row = {"system": "Be brief.", "history": [["Hi", "Hello."]], "instruction": "Add.", "input": "2+2", "chosen": "4",
           "rejected": "5"}
    assert [(turn.role, turn.content) for turn in only(tmp_path, row)[0]] == [
        ("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Add.\n2+2")]


def test_judgments_keep_all_that_annotators_said(tmp_path):
    said = {"verdict": "both_bad", "annotator": "w7", "reason": "wrong", "shown_first": "b", "strength": 0.5,
            "tags": ["rude"], "seconds": 4.5, "at": "2026-03-01T10:00:00Z"}
    item, = items_of(tmp_path, {"prompt": "2+2?", "a": "4", "b": "5", "judgments": [said, {"verdict": "skip"}]})
    assert item.judgments == (Judgment(verdict="both_bad", annotator="w7", reason="wrong", shown_first="b",
                                       strength=0.5, tags=("rude",), seconds=4.5, at="2026-03-01T10:00:00Z"),
                              Judgment(verdict="skip", annotator=""))


@pytest.mark.parametrize(("said", "sentence"), [
    ({"verdict": "left"}, r"'judgments\[0\].verdict' must be one of a, b, tie, both_bad, skip, found 'left'"),
    ({"verdict": "a", "strength": 2}, r"'judgments\[0\].strength' must be above 0 and at most 1, found 2"),
    ({"verdict": "a", "shown_first": "left"}, r"'judgments\[0\].shown_first' must be a, b or null, found 'left'"),
    ({"verdict": "a", "seconds": "4"}, r"'judgments\[0\].seconds' must be a number, found text"),
    ("a", r"'judgments\[0\]' must be an object, found text"),
])
def test_what_is_wrong_with_a_judgment_is_named(tmp_path, said, sentence):
    with pytest.raises(DataError, match=f"mine.jsonl:1: {sentence}"):
        items_of(tmp_path, {"prompt": "2+2?", "a": "4", "b": "5", "judgments": [said]})


def judged(*verdicts):
    """A comparison of which a list of verdicts is known, by annotators 0, 1, 2 ..."""
    return Judged(comparison=Comparison(prompt=Prompt(id="sum", messages=(ASK,)), a="4", b="5"), judgments=tuple(
        Judgment(verdict=verdict, annotator=str(place)) for place, verdict in enumerate(verdicts)))


@pytest.mark.parametrize(("verdicts", "chosen", "strength"), [
    (["a"], "4", 1.0), (["b", "b", "a"], "5", 1 / 3), (["a", "a", "tie", "skip"], "4", 2 / 3), (["a", "tie"], "4", 0.5),
    (["a", "b"], None, None), (["a", "tie", "both_bad"], None, None), (["skip"], None, None), ([], None, None)])
def test_a_majority_is_more_votes_than_the_other_and_no_fewer_than_ties(verdicts, chosen, strength):
    pairs = list(pairs_of(judged(*verdicts)))
    assert [(pair.chosen, pair.strength) for pair in pairs] == ([] if chosen is None else [(chosen, strength)])


def test_each_judgment_for_an_answer_is_a_pair_of_its_annotator():
    pairs = list(pairs_of(judged("a", "b", "tie", "skip", "a"), "each"))
    assert [(pair.chosen, pair.rejected, pair.source) for pair in pairs] == [
        ("4", "5", "0"), ("5", "4", "1"), ("4", "5", "4")]


def test_a_format_is_found_by_most_of_the_first_rows(tmp_path):
    pair, broken = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}, {"prompt": "2+2?", "chosen": "4"}
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, [broken, pair, pair])))
    assert detect_form(path) == "trl"
    with pytest.raises(DataError, match=r"mine.jsonl:1: 'rejected' is missing"):
        list(read_items(path))


def test_rows_of_no_format_and_unknown_formats_are_named(tmp_path):
    with pytest.raises(DataError, match=r"mine.jsonl:1: holds 'city', which is no data format of the lab"):
        items_of(tmp_path, {"city": "Bern"})
    with pytest.raises(DataError, match=r"mine.jsonl:1: is one message of an OpenAssistant tree; whole trees can be"):
        items_of(tmp_path, {"message_id": "m", "parent_id": None, "message_tree_id": "m", "text": "2+2?"})
    with pytest.raises(ConfigError, match=r"mine.jsonl: no data format is called 'hhh'; there are alpaca, arena"):
        items_of(tmp_path, USER, form="hhh")


def test_the_strict_reader_and_the_catalogue_read_the_same_pairs(tmp_path):
    pair = PreferencePair(prompt=Prompt(id="sum", messages=(ASK,), facts={"sum": 4}), chosen="4", rejected="5",
                          strength=0.5, source="w7")
    write_jsonl(tmp_path / "mine.jsonl", [pair_row(pair)])
    found = [derived for each in read_items(tmp_path / "mine.jsonl") for derived in pairs_of(each.item)]
    assert found == read_pairs(tmp_path / "mine.jsonl") == [pair]


@pytest.mark.parametrize(("a", "b"), [("", "Hello."), ("Hello.", " "), ("Hello.", "Hello.")])
def test_empty_or_equal_answers_make_no_pair(a: str, b: str) -> None:
    prompt = Prompt(id="p", messages=(Message(role="user", content="Hi"),))
    judged = Judged(comparison=Comparison(prompt=prompt, a=a, b=b),
                    judgments=(Judgment(verdict="a", annotator="anna"),))
    assert list(pairs_of(judged, "majority")) == list(pairs_of(judged, "each")) == []
