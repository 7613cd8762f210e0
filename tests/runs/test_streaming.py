"""Text piece by piece is the text of the whole, with no broken character and nothing of a stop string."""

import pytest

from rlhflab.model.tiny import byte_tokenizer
from rlhflab.runs.streaming import TextStream

TOKENIZER = byte_tokenizer()


def pieces(text, *stops, finish=True):
    stream = TextStream(lambda ids: TOKENIZER.decode(list(ids)), stops)
    found = [stream.push(token) for token in TOKENIZER(text, add_special_tokens=False).input_ids]
    return ([*found, stream.finish()] if finish else found), stream


def test_a_character_comes_once_its_last_byte_is_there():
    found, stream = pieces("aé€😀b")
    assert found == ["a", "", "é", "", "", "€", "", "", "", "😀", "b", ""]
    assert stream.shown == "aé€😀b" and not stream.stopped


def test_bytes_that_are_no_character_are_shown_at_the_end():
    ids = [TOKENIZER("é", add_special_tokens=False).input_ids[0]]
    stream = TextStream(lambda each: TOKENIZER.decode(list(each)))
    assert stream.push(ids[0]) == "" and stream.finish() == "\N{REPLACEMENT CHARACTER}"


def test_a_stop_string_and_what_follows_is_not_shown():
    found, stream = pieces("one END two", "END", finish=False)
    assert "".join(found) == "one " and stream.stopped
    assert stream.finish() == "" and stream.shown == "one "


def test_what_may_become_a_stop_string_is_held_until_it_is_sure():
    found, stream = pieces("aEN", "END", finish=False)
    assert found == ["a", "", ""]
    assert stream.finish() == "EN"
    assert pieces("aENd", "END", finish=False)[0] == ["a", "", "", "ENd"]
    assert "".join(pieces("xababc", "abac", "abc")[0]) == "xab", "the start of one may lie in the other"


def test_the_earliest_of_several_stop_strings_counts():
    assert "".join(pieces("a\n\nb", "\n\n", "\n")[0]) == "a"


@pytest.mark.parametrize("dropped", [" ", ""])
def test_a_tokenizer_that_drops_leading_spaces_loses_none(dropped):
    words = ["▁one", "▁two", "▁three"]
    stream = TextStream(lambda ids: "".join(words[i] for i in ids).replace("▁", " ").removeprefix(dropped))
    assert "".join([*(stream.push(i) for i in range(3)), stream.finish()]).split() == ["one", "two", "three"]
