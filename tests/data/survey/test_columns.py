"""The columns of a few rows, against what one reads off them."""

import numpy as np
import pytest

from rlhflab.data.chat import ChatFormat
from rlhflab.data.survey.columns import SAMPLED
from rlhflab.data.survey.markers import Markers
from rlhflab.data.survey.suites import GRAM, Suite
from rlhflab.data.survey.texts import word_hashes
from rlhflab.data.types import Conversation, Message
from rlhflab.model.tiny import byte_tokenizer
from survey_rows import asked, pair, surveyed, thumb


def test_labels_kinds_and_lengths_are_those_of_the_rows():
    talk = Conversation(id="", messages=(*asked("Hi").messages, Message(role="assistant", content="Hello there")))
    seen = surveyed(pair("2+2?", "4", "five", "a", "a", "b"), pair("2+2?", "4", "five", "b"), thumb("Hi", "Yo", False),
                    talk, asked("Why?"))
    assert [seen.of(kind).tolist().index(True) for kind in ("pair", "thumb", "demonstration", "prompt")] == [0, 2, 3, 4]
    assert seen.label.tolist() == [1, -1, -1, 0, 0]
    assert seen.chars[0].tolist() == [1, 4] and seen.prompt[0] == seen.prompt[1] != seen.prompt[2]
    assert [opinion.verdict for opinion in seen.opinions] == [1, 1, -1, -1]


def test_skips_say_nothing_and_ties_name_neither():
    seen = surveyed(pair("q", "x", "y", "skip", "tie", "a", first="b"))
    assert [(opinion.verdict, opinion.first_shown) for opinion in seen.opinions] == [(0, -1), (1, -1)]


def test_tokens_are_those_of_the_chat_format_and_cut_answers_are_compared():
    chat, same, other = ChatFormat(byte_tokenizer()), "a" * 50, "a" * 49 + "b"
    prompt = len(chat.prompt(asked("Hi")))
    rows = pair("Hi", same + "x", same + "y", "a"), pair("Hi", same, other, "a"), pair("Hi", "no", "yes", "a")
    tokens = surveyed(*rows, chat=chat, max_length=prompt + 50).tokens
    assert tokens.prompt.tolist() == [prompt] * 3
    assert tokens.answers.tolist() == [[52, 52], [51, 51], [3, 4]]
    assert tokens.same_when_cut.tolist() == [True, False, False]


def test_counting_many_texts_at_once_equals_counting_each():
    chat, texts = ChatFormat(byte_tokenizer()), ["", "abc", "naïve <|im_end|>", "x" * 300]
    assert chat.token_counts(texts) == [len(chat.answer(text)) - 1 for text in texts]


def test_a_long_file_keeps_an_even_sample_for_the_languages():
    seen = surveyed(*(asked(f"question {i}") for i in range(3 * SAMPLED)), near=False)
    places = np.array([opened.row for opened in seen.sample])
    assert len(places) == SAMPLED == len(set(places.tolist()))
    assert abs(places.mean() / (3 * SAMPLED) - 0.5) < 0.05 and seen.signatures is None


def test_excerpts_hold_no_secret():
    seen = surveyed(pair("Write to anna.meier@mail.net please", "x", "y", "a"))
    assert seen.excerpt == ("Write to [removed: e-mail address] please",)
    assert [(mark.where, mark.kind) for mark in seen.secrets] == [("prompt", "e-mail address")]


@pytest.mark.parametrize(("text", "found"), [
    ("it ends <|im_end|> here", {"<|im_end|>"}), ("[INST] x [/INST]", {"[INST]", "[/INST]"}), ("a < b > c", set()),
    ("my <|own|> one", {"<|own|>"}), ("[1] and <b>", set())])
def test_control_tokens_are_found_where_they_are_spelled_out(text, found):
    assert Markers(["<|own|>"]).tokens(text) == found


def test_a_transcript_has_two_speakers():
    assert Markers().turns("Human: Hi\n\nAssistant: Hello") and not Markers().turns("User: what is this?")
    assert not Markers().turns("He said Human: and Assistant: in one line")


def test_a_suite_finds_the_prompt_whose_words_a_text_holds():
    long = "please list the seven longest rivers of the old world in order of length"
    suite = Suite.of("rivers", ["short one", long])
    seen, = suite.hits(word_hashes(["nothing of it", f"so: {long}, he said"]))
    assert (seen.row, seen.prompt, seen.share) == (1, 1, 1.0)
    half, = suite.hits(word_hashes([" ".join(long.split()[:10])]))
    assert half.share == pytest.approx((10 - GRAM + 1) / (14 - GRAM + 1))


def test_wording_that_many_prompts_of_a_suite_share_is_not_looked_for():
    shared = "read the note below and answer the question in one short sentence"
    suite = Suite.of("desk", [f"{shared} number {i}" for i in range(20)])
    assert [hit for hit in suite.hits(word_hashes([shared])) if hit.share > 0] == []
