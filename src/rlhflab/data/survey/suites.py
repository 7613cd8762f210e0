"""Prompts that an evaluation asks, and which rows hold so much of one that they have seen it. No judgement here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rlhflab.data.survey.texts import (
    Hashes,
    Places,
    Runs,
    Signatures,
    content_hash,
    normal,
    shingles,
    signatures,
    word_hashes,
)

GRAM = 8
"""Words in a run that counts as seen (PaLM, arXiv:2204.02311 section 8)."""
COMMON = 10
"""Prompts of a suite that may share a run of words; what more of them share is wording of the suite and left out."""


class Hit(NamedTuple):
    """A row that holds runs of words of an evaluation prompt."""

    row: int
    """Of the batch that was looked at."""
    prompt: int
    """Of the suite, whose runs are held most."""
    share: float
    """Of the runs of that prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """The prompts of one evaluation, ready to be looked for."""

    name: str
    prompts: int
    exact: Hashes
    """Content hash of each prompt."""
    signatures: Signatures
    grams: Hashes
    """Runs of `GRAM` words, sorted, once for each prompt that has it ..."""
    owners: Places
    """... and which prompt that is."""
    totals: Places
    """Different runs of each prompt."""

    @classmethod
    def of(cls, name: str, prompts: Sequence[str]) -> "Suite":
        """From the last turns of the prompts."""
        words = word_hashes(prompts)
        runs = shingles(words, GRAM)
        owners = np.repeat(np.arange(len(prompts)), runs.counts)
        pairs = np.unique(np.stack([runs.values, owners.astype(np.uint64)], axis=1), axis=0)
        _, group, shared = np.unique(pairs[:, 0], return_inverse=True, return_counts=True)
        kept = pairs[shared[group] <= COMMON]
        owner = kept[:, 1].astype(np.int64)
        return cls(name=name, prompts=len(prompts), signatures=signatures(shingles(words)),
                   exact=np.array([content_hash(normal(prompt)) for prompt in prompts], dtype=np.uint64),
                   grams=kept[:, 0], owners=owner, totals=np.bincount(owner, minlength=len(prompts)))

    def hits(self, words: Runs) -> list[Hit]:
        """Of each text, given by its words, the prompt whose runs it holds the largest share of, if it holds any."""
        runs = shingles(words, GRAM)
        if not (runs.values.size and self.grams.size):
            return []
        low, high = (np.searchsorted(self.grams, runs.values, side) for side in ("left", "right"))
        met = np.flatnonzero(high > low)
        if not met.size:
            return []
        text = np.repeat(np.arange(runs.starts.size - 1), runs.counts)
        seen = {(int(text[at]), int(place)) for at in met for place in range(low[at], high[at])}
        counts: dict[tuple[int, int], int] = {}
        for row, place in seen:
            key = row, int(self.owners[place])
            counts[key] = counts.get(key, 0) + 1
        best: dict[int, Hit] = {}
        for (row, prompt), count in sorted(counts.items()):
            share = count / int(self.totals[prompt])
            if row not in best or share > best[row].share:
                best[row] = Hit(row, prompt, share)
        return list(best.values())
