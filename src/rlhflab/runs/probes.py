"""Checks that every run makes of itself, with the numbers measured. They cost a few short forward passes."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from rlhflab.core.batch import TokenAnswer, Tree
from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Message, Prompt
from rlhflab.model.shared import HEAD
from rlhflab.runs.folder import RunFolder
from rlhflab.runs.lab import Lab
from rlhflab.train.guards import (
    batch_gap,
    end_token_share,
    reading_gap,
    refuse_batch_gap,
    refuse_reading_gap,
)

TEXTS = {
    "When does the garage close?": ("At 8 pm.", "I do not know; the note does not say when it closes."),
    "Name three colours, and say which one you like best.": ("Red, green and blue. Blue!", "No."),
    "Hi": ("Hello. What can I do for you?", "Yes"),
}
"""Short conversations of different lengths on which two ways to compute the same are compared."""
FROM_FIRST_STEP = ("start_kl", "first_change")
"""What the loops measure once: KL(policy, reference) before the first step, nats a token, and the largest change of an
adapter weight in it."""
SCORED_APART = 4
"""Prompts whose answers are scored alone, together and backwards."""


def fixed_trees(chat: ChatFormat) -> list[Tree]:
    """`TEXTS` as the model reads them."""
    return [Tree(prompt=chat.prompt(Prompt(id=question, messages=(Message(role="user", content=question),))),
                 answers=tuple(TokenAnswer(ids=chat.answer(text)) for text in answers))
            for question, answers in TEXTS.items()]


def first_step(folder: RunFolder) -> dict[str, float]:
    """What the loop measured at its first step, also where another process took it."""
    rows = folder.rows("metrics.jsonl")
    found = {name: next((row[name] for row in rows if row.get(name) is not None), None) for name in FROM_FIRST_STEP}
    return {name: value for name, value in found.items() if value is not None}


def reread_roles(lab: Lab, folder: Path) -> dict[str, float]:
    """Load every role saved in `folder` under another name and compare it with the one that was trained.

    Returns the largest difference of each, raw score or nats a token. RunError where it is not 0. A stacked role is
    saved as one adapter: that one is read again to the bit, and in fp32 the stack itself to 1e-3. In bf16 the two round
    in another order, by .1 nats in the mean on a model of 30 layers, and the difference is only reported.
    """
    model, trees, gaps = lab.model, fixed_trees(lab.chat), {}
    for path in sorted(folder.iterdir()):
        role, again = path.name, f"{path.name}-reread"
        model.load_role(again, path, head="stored" if (path / HEAD).is_file() else "none")
        try:
            with model.as_one(role) as one:
                refuse_reading_gap(reading_gap(model, trees, one, again), where=str(path))
            gap = reading_gap(model, trees, role, again)
            if model.unembedding.dtype == torch.float32:
                refuse_reading_gap(gap, where=str(path), limit=1e-3 if model.stacked(role) else 0.0)
        finally:
            model.drop_role(again)
        gaps[role] = gap["reading_gap_max"]
    return gaps


def scores_by_batch(lab: Lab, trees: Sequence[Tree], *, role: str) -> dict[str, Any]:
    """Whether a reward role scores an answer alike whatever it is batched with, on a few of `trees`."""
    gap, record = batch_gap(lab.model, trees[:SCORED_APART], role=role), lab.model.records[role]
    refuse_batch_gap(gap, sigma=fmean(record.member_stds or (record.score_std,)), dtype=lab.model.unembedding.dtype)
    return gap


def trained_ends(lab: Lab, trees: Iterable[Tree]) -> float:
    """Share of the targets whose end-of-turn token is trained; says so where it is 0."""
    share = end_token_share(trees, lab.chat.end_id)
    if share == 0:
        lab.progress.say(f"Warning: no answer of the data ends with a trained {lab.chat.turn_end}, so the model will "
                         "not learn to stop.")
    return share
