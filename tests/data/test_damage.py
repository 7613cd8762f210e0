"""Every data format under every kind of damage: the file, the line and the field are named, and reading can go on."""

import copy
import gzip
import json

import pytest

from rlhflab.data.files import write_rows
from rlhflab.data.formats import LONGEST_ROW
from rlhflab.data.forms import data_format, in_order
from rlhflab.data.reading import read_items
from rlhflab.errors import DataError

HURT = {"judged": ("a",), "shared": ("response_a",), "arena": ("conversation_a", 1, "content"),
        "oasst": ("prompt", "replies", 0, "text"), "scored": ("completions", 0, "response"),
        "sharegpt": ("chosen", "value"), "alpaca": ("chosen",), "hh": ("chosen",), "pairs": ("chosen",),
        "trl": ("chosen", 0, "content"), "trl_implicit": ("chosen", 1, "content"), "thumbs": ("completion",),
        "demonstrations": ("messages", 1, "content"), "prompts": ("prompt", 0, "content")}
"""Where the text is that is damaged in each format's example."""
VALUES = {"null": None, "a number": 7, "a flag": True, "nothing": "", "spaces": " \n\t ", "no object": {},
          "no list": [], "lists in lists": [[["a"]]], "nested nulls": [None, {"role": None, "content": None}],
          "an object of nulls": {"role": "assistant", "content": None}, "half a surrogate pair": "a \ud83d b",
          "an unknown role": [{"role": "robot", "content": "4"}], "not a number": float("nan")}
LINES = {"a list": b"[1, 2]", "a text": b'"4"', "only null": b"null", "a bare number": b"4", "cut in the middle": None,
         "a comma at the end": b'{"prompt": "2+2?",}', "single quotes": b"{'prompt': '2+2?'}",
         "two objects": b'{"prompt": "2+2?"} {"prompt": "3+3?"}', "Latin-1": '{"prompt": "für"}'.encode("latin-1"),
         "UTF-16": '{"prompt": "2"}'.encode("utf-16-le").replace(b"\n", b""), "zero bytes": b"\0\0\0\0",
         "10 MB without an end": b'{"prompt": "' + b"x" * 10_000_000, "too deep": b'{"prompt": ' + b"[" * 100_000,
         "too many digits": b'{"prompt": ' + b"9" * 5000 + b"}", "another schema": b'{"city": "Bern", "zip": 3000}',
         "an empty object": b"{}", "a table's line": b"prompt,chosen,rejected", "a page": b"<!DOCTYPE html>"}
FILES = ("cut gzip", "broken gzip", "no gzip", "all UTF-16", "empty", "only blank lines", "absent", "a folder",
         "another kind of file")


def test_every_format_has_a_place_to_be_hurt_and_there_are_forty_damages():
    assert set(HURT) == set(data_format.names()) and len(VALUES) + len(LINES) + len(FILES) >= 40


def rows(form):
    """Three rows of a format."""
    example = in_order()[form].example
    return [copy.deepcopy(dict(example)) for _ in range(3)]


def read_all(path, form):
    """Items and complaints of a reading that goes on."""
    bad = []
    return [(each.line, each.item) for each in read_items(path, form=form, bad=bad.append)], list(map(str, bad))


def holds_only_the_second_back(path, form, whole, sentence):
    """Stops at the second row with `sentence`, or goes on and gives the first and the third one."""
    with pytest.raises(DataError) as stopped:
        list(read_items(path, form=form))
    items, bad = read_all(path, form)
    assert len(bad) == 1 and bad[0] == str(stopped.value) and bad[0].startswith(f"{path}:2: {sentence}")
    assert len(bad[0]) < len(str(path)) + 400 and "\n" not in bad[0]
    assert {line for line, _ in items} == {1, 3} == {line for line, _ in whole} - {2}


@pytest.mark.parametrize("damage", VALUES)
@pytest.mark.parametrize("form", HURT)
def test_a_damaged_value_is_named_by_its_field(tmp_path, form, damage):
    written, path = rows(form), tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    whole = read_all(path, form)[0]
    *way, last = HURT[form]
    inner = written[1]
    for key in way:
        inner = inner[key]
    inner[last] = VALUES[damage]
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    holds_only_the_second_back(path, form, whole, f"'{HURT[form][0]}")


@pytest.mark.parametrize("damage", LINES)
@pytest.mark.parametrize("form", HURT)
def test_a_damaged_line_is_named(tmp_path, form, damage):
    lines = [json.dumps(row).encode() for row in rows(form)]
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\n".join(lines))
    whole = read_all(path, form)[0]
    lines[1] = LINES[damage] or lines[1][:len(lines[1]) // 2]
    path.write_bytes(b"\n".join(lines))
    holds_only_the_second_back(path, form, whole, "")


@pytest.mark.parametrize("damage", FILES)
@pytest.mark.parametrize("form", HURT)
def test_a_damaged_file_is_named(tmp_path, form, damage):
    text = b"".join(json.dumps(row).encode() + b"\n" for row in rows(form) * 50)
    packed = gzip.compress(text)
    path = tmp_path / ("mine.jsonl.gz" if "gzip" in damage else "mine.txt" if "kind" in damage else "mine.jsonl")
    content = {"cut gzip": packed[:-40], "no gzip": b"4" + text, "all UTF-16": text.decode().encode("utf-16"),
               "empty": b"", "broken gzip": packed[:len(packed) // 2] + b"\0\1\2\3\4\5" + packed[len(packed) // 2 + 6:],
               "only blank lines": b"\n \n\n", "another kind of file": text}
    if damage == "a folder":
        path.mkdir()
    elif damage in content:
        path.write_bytes(content[damage])
    with pytest.raises(DataError, match=r"mine\.[a-z.]+: |mine\.[a-z.]+:\d+: "):
        list(read_items(path, form=form))


@pytest.mark.parametrize("form", HURT)
def test_what_was_read_before_a_cut_is_kept(tmp_path, form):
    text = b"".join(json.dumps({**row, "noise": str(i * 7919 % 1009)}).encode() + b"\n"
                    for i, row in enumerate(rows(form) * 200))
    path = tmp_path / "mine.jsonl.gz"
    path.write_bytes(gzip.compress(text)[:-50])
    items, bad = read_all(path, form)
    last = max(line for line, _ in items)
    assert last > 300 and len(bad) == 1 and bad[0].startswith(f"{path}:{last + 1}: cannot be read from here on")


@pytest.mark.parametrize("form", HURT)
def test_a_very_long_answer_is_no_damage(tmp_path, form):
    written, path = rows(form), tmp_path / "mine.jsonl"
    *way, last = HURT[form]
    inner = written[1]
    for key in way:
        inner = inner[key]
    inner[last] += "x" * 10_000_000
    path.write_text("".join(json.dumps(row) + "\n" for row in written))
    items, bad = read_all(path, form)
    assert not bad and {line for line, _ in items} == {1, 2, 3}


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".csv.gz", ".json.gz"])
@pytest.mark.parametrize("form", [name for name, form in in_order().items() if form.row])
def test_a_wrong_field_is_named_in_every_kind_of_file(tmp_path, form, kind):
    example, path = in_order()[form].example, tmp_path / f"mine{kind}"
    written = [dict(example) for _ in range(3)]
    write_rows(path, written, example=example)
    first, second, third = sorted({line for line, _ in read_all(path, form)[0]})
    del written[1][HURT[form][0]]
    write_rows(path, written, example=example)
    items, bad = read_all(path, form)
    assert len(bad) == 1 and bad[0].startswith(f"{path}:{second}: '{HURT[form][0]}")
    # A cell over several lines is shorter by the damage.
    assert len(items) == 2 and {line for line, _ in items} >= {first} and items[1][0] <= third


def test_a_line_beyond_the_limit_is_passed_over_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhflab.data.formats.LONGEST_ROW", 100)
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "2+2?"}\n{"prompt": "%s"}\n{"prompt": "3+3?"}\n' % ("x" * 1000))
    items, bad = read_all(path, "prompts")
    assert [line for line, _ in items] == [1, 3] and len(bad) == 1 and ":2: is longer than" in bad[0]
    assert LONGEST_ROW == 64 * 2**20
