"""Texts as numbers: content hashes, words, runs of words, and MinHash signatures of many texts at once.

NumPy only, and the same numbers on every machine. Signatures are those of datasketch's `affine32` scheme, to the bit,
for the same 32-bit inputs; here a batch of texts goes through each step together, which is about twenty times as fast
as one text after another. Nothing here decides what is alike.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]
Signatures = NDArray[np.uint32]
PERMUTATIONS = 60
"""Hash values in a signature; a similarity read from it is off by .06 (one standard error) at most."""
SHINGLE = 3
"""Words in a run that signatures are made of."""
BASE = 0x9E3779B97F4A7C15
INVERSE = pow(BASE, -1, 1 << 64)
SINGLES = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))
"""Scripts without spaces between words, in which each character counts as a word."""


def normal(text: str) -> str:
    """Text as it is compared: composed characters (NFC) and single spaces. Case and punctuation count."""
    return " ".join((text if text.isascii() else unicodedata.normalize("NFC", text)).split())


def content_hash(*parts: str) -> int:
    """64 bits of BLAKE2b over the parts: equal texts of different files and days get equal numbers."""
    return int.from_bytes(blake2b("\x00".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest(),
                          "little")


def plain_words(text: str) -> list[str]:
    """Letters and digits of one text in lower case, cut at everything else."""
    return [word for word in re.split(r"[^\w]+", normal(text).lower()) if word]


class Runs(NamedTuple):
    """Numbers of several texts, one text after the other."""

    values: Hashes
    starts: Places
    """Where each text begins in `values`, and where the last one ends: one longer than the texts."""

    @property
    def counts(self) -> Places:
        """How many each text has."""
        return np.diff(self.starts)


def word_hashes(texts: Sequence[str]) -> Runs:
    """A number for each word of each text, in lower case and without punctuation.

    A word is a run of letters, digits and marks. Its hash is that of a polynomial over its characters modulo 2^64, read
    off the running sum over the whole batch, so no word is ever made into an object.
    """
    lowered = [text.lower() for text in texts]
    lengths = np.fromiter((len(text) + 1 for text in lowered), dtype=np.int64, count=len(lowered))
    begins = np.concatenate([[0], np.cumsum(lengths)])
    letters = np.frombuffer(("\n".join(lowered) + "\n").encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    kinds = _kinds()[letters]
    fresh = (kinds > 0) & ((np.concatenate([[0], kinds[:-1]]) != kinds) | (kinds == 2))
    done = (kinds > 0) & ((np.concatenate([kinds[1:], [0]]) != kinds) | (kinds == 2))
    starts, ends = np.flatnonzero(fresh), np.flatnonzero(done) + 1
    powers, inverses = _powers(1 << max(16, int(letters.size).bit_length()))
    sums = np.zeros(letters.size + 1, dtype=np.uint64)
    np.cumsum(letters * powers[:letters.size], out=sums[1:])
    values = _mixed((sums[ends] - sums[starts]) * inverses[starts])
    return Runs(values, np.searchsorted(starts, begins))


def shingles(words: Runs, length: int = SHINGLE) -> Runs:
    """A number for each run of `length` words; a shorter text has one, of all its words, and an empty text none."""
    place = np.arange(words.values.size)
    ends = np.repeat(words.starts[1:], words.counts)
    left = ends - place
    values = np.zeros(words.values.size, dtype=np.uint64)
    for k in range(length):
        ahead = words.values[np.minimum(place + k, max(words.values.size - 1, 0))] if place.size else words.values
        values = np.where(left > k, values * np.uint64(INVERSE) + ahead, values)
    first = np.zeros(words.values.size, dtype=bool)
    first[words.starts[:-1][words.counts > 0]] = True
    kept = (left >= length) | first
    before = np.concatenate([[0], np.cumsum(kept)])
    return Runs(_mixed(values[kept]), before[words.starts])


def signatures(runs: Runs) -> Signatures:
    """MinHash signatures (Broder 1997), one row a text; a text without a word has the highest value everywhere."""
    found = np.full((runs.starts.size - 1, PERMUTATIONS), np.iinfo(np.uint32).max, dtype=np.uint32)
    has = runs.counts > 0
    if not has.any():
        return found
    values, starts = _finalised((runs.values >> np.uint64(32)).astype(np.uint32)), runs.starts[:-1][has]
    permuted = np.empty_like(values)
    for k, (factor, summand) in enumerate(zip(*_permutations(), strict=True)):
        np.multiply(values, factor, out=permuted)
        permuted += summand
        found[has, k] = np.minimum.reduceat(permuted, starts)
    return found


def similarity(a: Signatures, b: Signatures) -> NDArray[np.float64]:
    """Estimated Jaccard similarity of the texts behind each two rows; two texts without a word are alike."""
    return np.asarray((a == b).mean(axis=-1))


def similar_rows(*texts: Signatures, bands: int, alike: Callable[[Places], NDArray[np.bool_]]) -> Places:
    """Pairs of rows, (m, 2), of those that locality-sensitive hashing brings together: the ones that are `alike`.

    Rows that agree on all values of one of the `bands`, in each of `texts`, lie together when sorted, and each is
    compared with the one before it and with the first of its group: linear memory, and no comparison of all with all.
    Two texts at similarity s are met with probability 1 - (1 - s^r)^bands, r the values that they agree on.
    """
    width = PERMUTATIONS // bands
    met: list[Places] = []
    for band in range(bands):
        part = slice(band * width, (band + 1) * width)
        keys = _row_keys(np.concatenate([found[:, part] for found in texts], axis=1))
        order = np.argsort(keys, kind="stable")
        same = np.concatenate([[False], keys[order][1:] == keys[order][:-1]])
        first = np.maximum.accumulate(np.where(same, 0, np.arange(order.size)))
        at = np.flatnonzero(same)
        for other in (at - 1, first[at]):
            pairs = np.sort(np.stack([order[at], order[other]], axis=1), axis=1)
            met.append(pairs[alike(pairs)])
    pairs = np.concatenate(met) if met else np.zeros((0, 2), dtype=np.int64)
    return np.unique(pairs, axis=0)


def _row_keys(values: Signatures) -> Hashes:
    """One number for the values of each row."""
    keys = np.zeros(values.shape[0], dtype=np.uint64)
    for column in values.T:
        keys = _mixed(keys * np.uint64(BASE) + column)
    return keys


def _mixed(values: Hashes) -> Hashes:
    """Steps of MurmurHash3's 64-bit finaliser: every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def _finalised(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """MurmurHash3's 32-bit finaliser, which datasketch puts before its permutations."""
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    values = (values ^ (values >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))


@cache
def _permutations() -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Odd factors and summands of x -> a x + b modulo 2^32, drawn as datasketch draws them from seed 1."""
    drawn = np.random.RandomState(1)
    factors = drawn.randint(0, 1 << 31, PERMUTATIONS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    return factors, drawn.randint(0, 1 << 32, PERMUTATIONS, dtype=np.uint32)


@cache
def _powers(size: int) -> tuple[Hashes, Hashes]:
    """BASE^1, BASE^2 ... modulo 2^64, and the powers of its inverse."""
    powers, inverses = (np.cumprod(np.full(size, value, dtype=np.uint64), dtype=np.uint64)
                        for value in (BASE, INVERSE))
    return powers, inverses


@cache
def _kinds() -> NDArray[np.uint8]:
    """By character: 0 between words, 1 inside a word, 2 a word by itself."""
    # The 17 planes of Unicode: letters, digits and numbers, and the marks that belong to letters.
    inside = bytes(unicodedata.category(chr(code))[0] in "LNM" for code in range(0x110000))
    kinds = np.frombuffer(inside, dtype=np.uint8).copy()
    kinds[ord("_")] = 1
    for low, high in SINGLES:
        kinds[low:high + 1] *= 2
    return kinds
