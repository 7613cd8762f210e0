"""Words, runs of words and signatures: equal to a plain way, and to datasketch's bit for bit."""

import random

import datasketch
import numpy as np
import pytest

from rlhflab.data.survey.texts import (
    PERMUTATIONS,
    content_hash,
    normal,
    plain_words,
    shingles,
    signatures,
    similar_rows,
    similarity,
    word_hashes,
)

TEXTS = ["The cat sat on the mat.", "", "cat", "two words", "The CAT,  sat on the mat", "日本 語 text", "a b c d " * 40]


def drawn_texts(n, words=60, seed=0):
    draw = random.Random(seed)
    return [" ".join(f"w{draw.randrange(5000)}" for _ in range(words)) for _ in range(n)]


def test_equal_words_have_equal_hashes_wherever_they_stand_in_a_batch():
    words = word_hashes(["b a", "a", "x, A!"])
    assert words.starts.tolist() == [0, 2, 3, 5]
    assert words.values[1] == words.values[2] == words.values[4] != words.values[0]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_the_same_words_alone_and_in_a_batch(text):
    alone, batch, place = word_hashes([text]), word_hashes(TEXTS), TEXTS.index(text)
    assert alone.values.tolist() == batch.values[batch.starts[place]:batch.starts[place + 1]].tolist()


def test_there_are_as_many_words_as_a_plain_cut_finds_and_scripts_without_spaces_count_by_character():
    latin = ["The cat's mat, 3 x 4!", "naïve café_au_lait", " \n\t", "Ünïcode"]
    assert word_hashes(latin).counts.tolist() == [len(plain_words(text)) for text in latin] == [7, 2, 0, 1]
    assert word_hashes(["日本語", "ab日本cd"]).counts.tolist() == [3, 4]


def test_runs_of_words_are_those_of_each_text_and_a_short_text_has_one():
    runs = shingles(word_hashes(["a b c d", "", "a b", "a b c"]), 3)
    assert runs.counts.tolist() == [2, 0, 1, 1]
    assert runs.values[0] == runs.values[3] and len(set(runs.values[:3].tolist())) == 3


def test_the_order_of_words_counts():
    a, b = signatures(shingles(word_hashes(["one two three four", "four three two one"])))
    assert similarity(a[None], b[None])[0] < 0.2


def test_signatures_are_those_of_datasketch():
    runs = shingles(word_hashes(TEXTS))
    found = signatures(runs)
    for place in range(len(TEXTS)):
        plain = datasketch.MinHash(num_perm=PERMUTATIONS, hashfunc=int)
        plain.update_batch((runs.values[runs.starts[place]:runs.starts[place + 1]] >> np.uint64(32)).tolist())
        np.testing.assert_array_equal(plain.hashvalues, found[place])


def test_the_similarity_read_from_signatures_is_near_that_of_the_sets():
    first = drawn_texts(1, words=400)[0].split()
    runs = shingles(word_hashes([" ".join(first), " ".join(first[100:] + ["x"] * 100)]))
    left, right = (set(runs.values[runs.starts[i]:runs.starts[i + 1]].tolist()) for i in (0, 1))
    exact = len(left & right) / len(left | right)
    found = signatures(runs)
    assert exact == pytest.approx(298 / 401, abs=0.01)
    assert similarity(found[:1], found[1:])[0] == pytest.approx(exact, abs=0.2)


def test_similar_rows_finds_the_near_copies_among_many_and_nothing_else():
    texts = drawn_texts(300)
    texts += [f"{text} please" for text in texts[:40]]
    found = signatures(shingles(word_hashes(texts)))
    pairs = similar_rows(found, bands=12, alike=lambda at: similarity(found[at[:, 0]], found[at[:, 1]]) >= 0.8)
    assert pairs.tolist() == [[i, 300 + i] for i in range(40)]


def test_content_hashes_tell_parts_apart_and_ignore_spaces_and_composition():
    assert content_hash("a", "b") != content_hash("ab") != content_hash("b", "a")
    assert normal("  a \n b ") == "a b" and normal("e\u0301") == "\u00e9"
    assert content_hash("Hi") == 14829048130154807757, "the same on every machine, or splits would move"
