"""The user's JSONL: every shape that is read, every error that is named, and rows that read back equal."""

import gzip
import json
from pathlib import Path

import pytest

from rlhflab.data.formats import (
    comparison_row,
    conversation_row,
    finite,
    pair_row,
    prompt_row,
    read_comparisons,
    read_conversations,
    read_pairs,
    read_prompts,
    read_thumbs,
    thumb_row,
    write_jsonl,
)
from rlhflab.data.types import Comparison, Conversation, Message, PreferencePair, Prompt, Thumb
from rlhflab.errors import DataError

SYSTEM, ASK, REPLY = (Message(role=role, content=text) for role, text in
                      (("system", "Be brief."), ("user", "2+2?"), ("assistant", "4")))
ASK_ROW, REPLY_ROW = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
WORSE_ROW = {"role": "assistant", "content": "5"}


def file_of(folder: Path, *lines: object) -> Path:
    """A JSONL file: text and bytes as they are, other values as JSON."""
    path = folder / "mine.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    return path


@pytest.mark.parametrize("row", [
    {"messages": [ASK_ROW, REPLY_ROW]},
    {"prompt": "2+2?", "answer": "4"},
    {"prompt": [ASK_ROW], "completion": [REPLY_ROW]},
    {"prompt": [ASK_ROW], "response": [ASK_ROW, REPLY_ROW]},
    {"messages": None, "prompt": "2+2?", "answer": "4", "score": 3},
])
def test_every_shape_of_a_demonstration_reads_the_same(tmp_path, row):
    assert read_conversations(file_of(tmp_path, row)) == [Conversation(id="mine:1", messages=(ASK, REPLY))]


@pytest.mark.parametrize("row", [
    {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    {"prompt": [ASK_ROW], "chosen": [REPLY_ROW], "rejected": [WORSE_ROW]},
    {"prompt": "2+2?", "chosen": [ASK_ROW, REPLY_ROW], "rejected": [ASK_ROW, WORSE_ROW]},
    {"chosen": [ASK_ROW, REPLY_ROW], "rejected": [ASK_ROW, WORSE_ROW], "strength": None},
])
def test_every_shape_of_a_pair_reads_the_same(tmp_path, row):
    prompt = Prompt(id="mine:1", messages=(ASK,))
    assert read_pairs(file_of(tmp_path, row)) == [PreferencePair(prompt=prompt, chosen="4", rejected="5")]


@pytest.mark.parametrize("row", [
    {"prompt": "2+2?", "completion": "4", "label": True},
    {"prompt": [ASK_ROW], "completion": [REPLY_ROW], "label": True},
    {"prompt": "2+2?", "answer": [ASK_ROW, REPLY_ROW], "label": True},
])
def test_every_shape_of_a_thumb_reads_the_same(tmp_path, row):
    prompt = Prompt(id="mine:1", messages=(ASK,))
    assert read_thumbs(file_of(tmp_path, row)) == [Thumb(prompt=prompt, answer="4", good=True)]


def test_a_pair_among_thumbs_is_two(tmp_path):
    rows = read_thumbs(file_of(tmp_path, {"prompt": "2+2?", "answer": "vier", "label": False}, GOOD))
    assert [(thumb.prompt.id, thumb.answer, thumb.good) for thumb in rows] == [
        ("mine:1", "vier", False), ("mine:2", "4", True), ("mine:2", "5", False)]


@pytest.mark.parametrize(("change", "sentence"), [
    ({"label": None}, "'label' must be true (a good answer) or false, found nothing"),
    ({"label": 1}, "'label' must be true (a good answer) or false, found a number"),
    ({"completion": None}, "'completion' is missing; a thumb has 'prompt', 'label' and one of 'answer'"),
    ({"answer": "4"}, "'completion' is missing"),
    ({"completion": [ASK_ROW]}, "'completion' must end in a turn of the assistant"),
    ({"completion": [WORSE_ROW, REPLY_ROW]}, "'completion' starts with other turns than 'prompt'"),
    ({"prompt": None}, "'prompt' is missing"),
])
def test_a_wrong_thumb_is_named(tmp_path, change, sentence):
    with pytest.raises(DataError) as error:
        read_thumbs(file_of(tmp_path, {"prompt": "2+2?", "completion": "4", "label": True, **change}))
    assert sentence in str(error.value) and "mine.jsonl:1: " in str(error.value)


@pytest.mark.parametrize("row", [{"prompt": "2+2?"}, {"prompt": [ASK_ROW]}, {"messages": [ASK_ROW]}])
def test_every_shape_of_a_prompt_reads_the_same(tmp_path, row):
    path = file_of(tmp_path, {**row, "id": 7, "facts": {"sum": 4}})
    assert read_prompts(path) == [Prompt(id="7", messages=(ASK,), facts={"sum": 4})]


def test_blank_lines_are_skipped_but_counted_and_a_byte_order_mark_is_no_text(tmp_path):
    path = file_of(tmp_path, b"\xef\xbb\xbf", b" \r", {"prompt": "2+2?"})
    assert [prompt.id for prompt in read_prompts(path)] == ["mine:3"]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_rows_read_back_equal(tmp_path, name):
    prompt = Prompt(id="p", messages=(SYSTEM, ASK, REPLY, ASK), facts={"Größe": [1, None]})
    pair = PreferencePair(prompt=prompt, chosen="vier\u2028", rejected=" 5\n", strength=0.25, source="annotator:ä")
    conversation = Conversation(id="c", messages=(SYSTEM, ASK, REPLY))
    path = tmp_path / "new" / name
    for row, read, record in ((prompt_row, read_prompts, prompt), (pair_row, read_pairs, pair),
                              (conversation_row, read_conversations, conversation),
                              (thumb_row, read_thumbs, Thumb(prompt=prompt, answer="vier", good=False, source="ä"))):
        write_jsonl(path, [row(record)])
        assert read(path) == [record]


def test_comparisons_read_back_equal_with_what_else_a_row_says_left_out(tmp_path):
    mine = Comparison(prompt=Prompt(id="p", messages=(SYSTEM, ASK), facts={"right": "4"}), a="4", b="5")
    assert read_comparisons(file_of(tmp_path, {**comparison_row(mine), "why": "wrong", "cluster": "right"})) == [mine]
    with pytest.raises(DataError, match=r"mine\.jsonl:1: 'a' and 'b' are equal; there is nothing to compare"):
        read_comparisons(file_of(tmp_path, {**comparison_row(mine), "b": "4"}))


def test_what_json_cannot_hold_becomes_null():
    assert finite({"a": [1.0, float("-inf")], "b": (float("nan"), "x", 2)}) == {"a": [1.0, None], "b": [None, "x", 2]}


def test_a_compressed_file_gives_the_ids_of_the_plain_one(tmp_path):
    write_jsonl(tmp_path / "a.jsonl.gz", [{"prompt": "2+2?"}])
    assert read_prompts(tmp_path / "a.jsonl.gz")[0].id == "a:1"
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()) == b'{"prompt": "2+2?"}\n'


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"prompt": "old"}])
    with pytest.raises(TypeError):
        write_jsonl(path, [{"prompt": "new"}, {"prompt": object()}])
    assert path.read_text() == '{"prompt": "old"}\n'
    assert list(tmp_path.iterdir()) == [path]


GOOD = {"prompt": "2+2?", "answer": "4", "chosen": "4", "rejected": "5"}
DEMONSTRATION_ERRORS = [
    ([b"  "], "mine.jsonl: is empty"),
    ([GOOD, b"{'a': 1}"], "mine.jsonl:2: is not JSON at column 2"),
    ([b'{"prompt": "\xff"}'], "mine.jsonl:1: is not UTF-8 at byte 12"),
    ([b"[" * 100_000], "mine.jsonl:1: cannot be read as JSON"),
    ([["a"]], "mine.jsonl:1: must be an object, found a list"),
    ([{"prompt": "2+2?"}], "'messages' is missing; a demonstration has it, or 'prompt' and one of"),
    ([{**GOOD, "response": "4"}], "'messages' is missing"),
    ([{"prompt": "2+2?", "answer": " "}], "'answer' is empty"),
    ([{"prompt": 4, "answer": "4"}], "'prompt' must be a list of messages, found a number"),
    ([{"prompt": "2+2?", "answer": True}], "'answer' must be a list of messages, found true or false"),
    ([{"prompt": "\ud800", "answer": "4"}], "'prompt' holds half of a surrogate pair"),
    ([{"prompt": "2+2?", "answer": [WORSE_ROW, REPLY_ROW]}], "'answer' starts with other turns than 'prompt'"),
    ([{"messages": []}], "'messages' is an empty list"),
    ([{"messages": ["hi"]}], "'messages[0]' must be an object with role and content, found text"),
    ([{"messages": [{"role": "human", "content": "hi"}]}],
     "'messages[0].role' must be one of system, user, assistant, found 'human'"),
    ([{"messages": [{"role": ["user"], "content": "hi"}]}], "'messages[0].role' must be one of"),
    ([{"messages": [{"role": "user"}]}], "'messages[0].content' must be text, found null"),
    ([{"messages": [ASK_ROW]}], "'messages' must end in a turn of the assistant, found one of the user"),
    ([{"messages": [ASK_ROW, REPLY_ROW], "id": " "}], "'id' is empty"),
]
PAIR_ERRORS = [
    ({"chosen": None}, "'chosen' is missing"),
    ({"rejected": ""}, "'rejected' is empty"),
    ({"prompt": None}, "'prompt' is missing, and 'chosen' holds no turns before its answer"),
    ({"prompt": [ASK_ROW, REPLY_ROW]}, "'prompt' must end in a turn of the user"),
    ({"rejected": "4"}, "mine.jsonl:1: 'chosen' and 'rejected' are equal"),
    ({"rejected": [WORSE_ROW, WORSE_ROW]}, "'rejected' starts with other turns than 'prompt'"),
    ({"prompt": None, "chosen": [ASK_ROW, REPLY_ROW]}, "'rejected' differs from 'chosen' before its last turn"),
    ({"prompt": None, "chosen": [REPLY_ROW, REPLY_ROW], "rejected": [REPLY_ROW, WORSE_ROW]},
     "must end in a turn of the user, found one of the assistant"),
    ({"strength": 0}, "'strength' must be above 0 and at most 1, found 0"),
    ({"strength": float("nan")}, "'strength' must be above 0"),
    ({"strength": True}, "'strength' must be a number, found true or false"),
    ({"source": 3}, "'source' must be text, found a number"),
    ({"facts": []}, "'facts' must be an object, found a list"),
]


@pytest.mark.parametrize(("lines", "sentence"), DEMONSTRATION_ERRORS)
def test_a_wrong_demonstration_is_named(tmp_path, lines, sentence):
    with pytest.raises(DataError) as error:
        read_conversations(file_of(tmp_path, *lines))
    assert sentence in str(error.value) and str(error.value).startswith(str(tmp_path / "mine.jsonl"))


@pytest.mark.parametrize(("change", "sentence"), PAIR_ERRORS)
def test_a_wrong_pair_is_named(tmp_path, change, sentence):
    with pytest.raises(DataError) as error:
        read_pairs(file_of(tmp_path, {**GOOD, **change}))
    assert sentence in str(error.value) and "mine.jsonl:1: " in str(error.value)


def test_a_prompt_that_ends_in_an_answer_is_named(tmp_path):
    with pytest.raises(DataError, match="'messages' must end in a turn of the user"):
        read_prompts(file_of(tmp_path, {"messages": [ASK_ROW, REPLY_ROW]}))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    whole = gzip.compress(b'{"prompt": "2+2?"}\n' * 99)
    for name, content, sentence in (("none.jsonl", None, "none.jsonl: no such file"),
                                    ("half.jsonl.gz", whole[:-20], "half.jsonl.gz:29: cannot be read from here on: "),
                                    ("plain.jsonl.gz", b"{}", "plain.jsonl.gz: cannot be read: Not a gzipped file")):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=sentence):
            read_prompts(tmp_path / name)
    with pytest.raises(DataError, match="is a folder; a JSONL file is needed"):
        read_prompts(tmp_path)
