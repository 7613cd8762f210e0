"""Rows, baselines and our reward role on people's labels: `python -m peers.human_ours asked.json done.json`."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from peers.human import RATE, Piece, ordered, serve
from peers.ours import prompt_of
from peers.prepare import cut_answer, cut_prompt, ids_of
from rlhflab.analysis.bag_of_words import Vocabulary, fit_preferences
from rlhflab.analysis.reward_quality import ordered_by_length
from rlhflab.config import RewardRun, make_run
from rlhflab.data.chat import ChatFormat
from rlhflab.data.reading import pairs_of
from rlhflab.data.types import Message, PreferencePair, Prompt
from rlhflab.model.shared import SharedModel
from rlhflab.progress import Progress
from rlhflab.rollout.scoring import score_trees
from rlhflab.runs.comparisons import read_judged
from rlhflab.runs.sources import group_by_prompt, preference_tree
from rlhflab.train.reward import train_reward
from rlhflab.train.state import Schedule

APART = {True: 0.2, False: 1 / 3}
"""Share of the prompts that is held out, of all rows and of some."""
FOLDS = 5
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def rows(piece: Piece) -> dict[str, Any]:
    """Write the rows that every side reads: split by prompt, cut to whole tokens, tokenised alike by every side."""
    chat = ChatFormat(SharedModel.load(piece.model, dtype="float32", device="cpu").tokenizer)
    pairs = decided(piece)
    prompts = sorted({pair.prompt.messages for pair in pairs}, key=repr)
    Random(piece.seed).shuffle(prompts)
    apart = set(prompts[:max(1, round(APART[piece.everything] * len(prompts)))])
    cut = Cut(chat, piece)
    facts: dict[str, Any] = {"model": piece.model, "pairs": len(pairs)}
    for part, most in (("train", piece.pairs), ("held_out", piece.held_out)):
        of_part = [pair for pair in pairs if (pair.prompt.messages in apart) == (part == "held_out")]
        kept = []
        for pair in in_turn(of_part, piece.seed):
            if len(kept) == most and not piece.everything:
                break
            if (row := cut.row(pair)) is not None:
                kept.append(row)
        facts[part] = {"of": len(of_part), "rows": len(kept), "cut": sum(row["cut"] for row in kept)}
        (Path(piece.folder) / f"{part}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    return facts


def decided(piece: Piece) -> list[PreferencePair]:
    """The pairs of a set on which a majority took a side; rows with an empty answer are left out."""
    return [pair for row in read_judged(Path(piece.data) / "pairs.jsonl", skip_bad=True) for pair in pairs_of(row)]


def in_turn(pairs: Sequence[PreferencePair], seed: int) -> Iterator[PreferencePair]:
    """One pair of each prompt, then a second of each, and so on: as many prompts as can be."""
    groups: dict[Any, list[PreferencePair]] = {}
    for pair in pairs:
        groups.setdefault(pair.prompt.messages, []).append(pair)
    queues = list(groups.values())
    Random(seed).shuffle(queues)
    for place in range(max(map(len, queues), default=0)):
        yield from (queue[place] for queue in queues if place < len(queue))


class Cut:
    """Cuts pairs to the lengths of a piece, each prompt once."""

    def __init__(self, chat: ChatFormat, piece: Piece) -> None:
        self.chat, self.piece = chat, piece
        self._prompts: dict[tuple[Message, ...], tuple[Prompt, list[int], str] | None] = {}

    def row(self, pair: PreferencePair) -> dict[str, Any] | None:
        """The row of a pair; None where it cannot be cut, or would have other tokens in one string than in parts."""
        shown = self._prompt(pair.prompt)
        chosen, rejected = (cut_answer(self.chat, text, self.piece.answer_tokens)
                            for text in (pair.chosen, pair.rejected))
        if shown is None or not chosen or not rejected or chosen == rejected:
            return None
        prompt, ids, text = shown
        if any(ids_of(self.chat, text + side + self.chat.turn_end) != [*ids, *self.chat.answer(side)]
               for side in (chosen, rejected)):
            return None
        cut = prompt.messages != pair.prompt.messages or [chosen, rejected] != [
            pair.chosen.strip(), pair.rejected.strip()]
        return {"id": pair.prompt.id, "prompt_id": named(pair), "prompt": text, "chosen": chosen, "rejected": rejected,
                "messages": [{"role": m.role, "content": m.content} for m in prompt.messages], "cut": cut}

    def _prompt(self, prompt: Prompt) -> tuple[Prompt, list[int], str] | None:
        """The prompt as it is shown, its tokens, and these as text."""
        if prompt.messages not in self._prompts:
            shown = cut_prompt(self.chat, prompt, self.piece.prompt_tokens)
            ids = [] if shown is None else list(self.chat.prompt(shown))
            self._prompts[prompt.messages] = None if shown is None else (shown, ids, self.chat.tokenizer.decode(ids))
        return self._prompts[prompt.messages]


def named(pair: PreferencePair) -> str:
    """A short name of the pair's whole prompt."""
    return hashlib.sha256(repr(pair.prompt.messages).encode()).hexdigest()[:16]


def pairs_in(rows: Sequence[dict[str, Any]]) -> list[PreferencePair]:
    """The pairs of some rows."""
    return [PreferencePair(prompt=prompt_of(row), chosen=row["chosen"], rejected=row["rejected"]) for row in rows]


# -- sides -----------------------------------------------------------------------------------------------------------


def baselines(piece: Piece) -> dict[str, Any]:
    """Length alone and a bag of words: on the rows of the other sides, and over all rows in five folds by prompt."""
    began = time.perf_counter()
    train, held_out = (pairs_in(piece.rows(part)) for part in ("train", "held_out"))
    of_split = {"length": ordered_by_length(train, held_out).tolist(), "words": by_words(train, held_out)}
    return piece.result([], time.perf_counter() - began, folds=folds(decided(piece), piece.seed), **of_split)


def folds(pairs: Sequence[PreferencePair], seed: int) -> dict[str, Any]:
    """Each prompt held out once, all words and answers whole."""
    prompts = sorted({pair.prompt.messages for pair in pairs}, key=repr)
    Random(seed).shuffle(prompts)
    fold = {prompt: i % FOLDS for i, prompt in enumerate(prompts)}
    found: dict[str, Any] = {"length": [], "words": [], "prompts": []}
    for number in range(FOLDS):
        train, held_out = ([pair for pair in pairs if (fold[pair.prompt.messages] == number) == kept]
                           for kept in (False, True))
        found["length"] += ordered_by_length(train, held_out).tolist()
        found["words"] += by_words(train, held_out)
        found["prompts"] += [named(pair) for pair in held_out]
    return found


def by_words(train: Sequence[PreferencePair], held_out: Sequence[PreferencePair]) -> list[float]:
    """Bradley-Terry on TF-IDF words of the answers, with a ridge of 1."""
    vocabulary = Vocabulary.of([text for pair in train for text in (pair.chosen, pair.rejected)])
    seen, unseen = (vocabulary.tf_idf([pair.chosen for pair in pairs]) - vocabulary.tf_idf(
        [pair.rejected for pair in pairs]) for pairs in (train, held_out))
    gaps = np.round(unseen @ fit_preferences(seen), 9)
    return ordered(gaps.tolist(), [0.0] * len(held_out))


def ours(piece: Piece) -> dict[str, Any]:
    """A reward role by our recipe, one epoch from the base."""
    model = SharedModel.load(piece.model, dtype=DTYPES[piece.precision], device=piece.device)
    chat = ChatFormat(model.tokenizer)
    run = make_run("reward", {"model": piece.model, "dtype": DTYPES[piece.precision], "batch": piece.batch, "epochs": 1,
                              "seed": piece.seed, "micro_tokens": piece.micro_tokens,
                              "optimizer": {"learning_rate": RATE}, "head_learning_rate": 3 * RATE})
    assert isinstance(run, RewardRun)
    train, held_out = (pairs_in(piece.rows(part)) for part in ("train", "held_out"))
    preferences = [preference_tree(chat, group) for group in group_by_prompt(train)]
    model.add_role("reward", run.lora, head="random", seed=run.seed)
    began = time.perf_counter()
    with Progress().track(f"{piece.set}, ours", len(Schedule.of(run, len(preferences)))) as bar:
        for step in train_reward(run, model, preferences):
            bar.advance(1, loss=step.metrics["loss"], accuracy=step.metrics["accuracy"])
    seconds = time.perf_counter() - began
    trees = [preference_tree(chat, [pair]).tree for pair in held_out]
    scores = [each.tolist() for each in score_trees(model, trees, role="reward", micro_tokens=piece.micro_tokens)]
    return piece.result(ordered([each[0] for each in scores], [each[1] for each in scores]), seconds,
                        settings=run.model_dump(mode="json"), threads=torch.get_num_threads())


if __name__ == "__main__":
    serve({"rows": rows, "baselines": baselines, "ours": ours})
