"""From `data:` of a run file to what a loop trains on: a JSONL file, or a scenario that makes its own data."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from rlhflab.config import DpoRun, RewardRun, Run, SampledRun, SftRun
from rlhflab.core.batch import PreferenceTree, ThumbTree, TokenAnswer, Tree
from rlhflab.data.chat import ChatFormat
from rlhflab.data.formats import (
    conversation_row,
    prompt_row,
    read_conversations,
    read_pairs,
    read_prompts,
    read_thumbs,
)
from rlhflab.data.types import Conversation, Message, PreferencePair, Prompt, Thumb, thumbs_of
from rlhflab.errors import DataError
from rlhflab.progress import Progress
from rlhflab.registry.records import canonical, sha256_of
from rlhflab.registry.sources import data_settings
from rlhflab.runs.lab import Lab
from rlhflab.runs.preferences import collect_pairs
from rlhflab.scenarios import names, scenario
from rlhflab.scenarios.base import Scenario

T = TypeVar("T")
PairOrThumb = TypeVar("PairOrThumb", PreferencePair, Thumb)
MOST_PAIRS = 32
"""Pairs or thumbs of one prompt that share a row: bounds its length, whatever the data."""


def gold_of(run: Run, prompts: Iterable[Prompt]) -> Scenario | None:
    """The scenario whose gold check can judge answers to this run's prompts, if there is one."""
    name = run.gold or (run.data if run.data in names() else None)
    without = next((prompt.id for prompt in prompts if not prompt.facts), None)
    if name is not None and without is not None:
        raise DataError(f"{run.data}: row {without}: has no 'facts', by which gold: {name} could judge answers")
    return scenario(name) if name else None


def conversations(run: Run) -> list[Conversation]:
    """Demonstrations of an SFT run."""
    if run.data in names():
        return scenario(run.data).demonstrations(run.examples, seed=run.seed)
    return read_conversations(file_of(run.data))


def pairs(run: RewardRun | DpoRun, lab: Lab) -> list[PreferencePair]:
    """Preference pairs. A scenario's are sampled from the adapter `start` and judged by its unbiased annotators."""
    if run.data not in names():
        return read_pairs(file_of(run.data))
    lab.start_role("sampler", run)
    collected = collect_pairs(lab, scenario(run.data), role="sampler", prompts=run.examples, seed=run.seed)
    lab.model.drop_role("sampler")
    return collected.pairs


def thumbs(run: DpoRun, lab: Lab) -> list[Thumb]:
    """Answers that were judged each on its own; of a scenario or a file of pairs, both answers of each pair."""
    if run.data not in names():
        return thumbs_of_file(run)
    return [thumb for pair in pairs(run, lab) for thumb in thumbs_of(pair)]


def thumbs_of_file(run: DpoRun) -> list[Thumb]:
    """The thumbs of the data file. DataError where all of them say the same."""
    found = read_thumbs(file_of(run.data))
    missing = {True, False} - {thumb.good for thumb in found}
    if missing:
        raise DataError(f"{run.data}: no row has the label {'true' if True in missing else 'false'}; "
                        f"{run.loss.name} learns from good and bad answers")
    return found


def prompts(run: SampledRun) -> list[Prompt]:
    """Prompts of a run that samples."""
    if run.data in names():
        return scenario(run.data).prompts("rl", run.examples, seed=run.seed)
    return read_prompts(file_of(run.data))


def data_read(run: Run) -> list[dict[str, str]]:
    """Setting, name and sha256 of what a run reads: of a file, or of the rows that a scenario makes without a model.

    Pairs of a scenario are sampled while the run is under way; they have no digest.
    """
    found = {name: sha256_of(Path(name)) for _, name in data_settings(run.model_dump(mode="json"))
             if Path(name).is_file()}
    if run.data in names() and isinstance(run, SftRun | SampledRun):
        rows = map(conversation_row, conversations(run)) if isinstance(run, SftRun) else map(prompt_row, prompts(run))
        found[run.data] = sha256("".join(canonical(row) + "\n" for row in rows).encode()).hexdigest()
    return [{"key": key, "name": name, "sha256": found[name]}
            for key, name in data_settings(run.model_dump(mode="json")) if name in found]


def conversation_tree(chat: ChatFormat, conversation: Conversation) -> Tree:
    """The conversation as one prompt and one answer in which only the assistant's tokens are scored."""
    ids = chat.conversation(conversation)
    return Tree(prompt=ids.prompt, answers=(TokenAnswer(ids=ids.ids, scored=ids.scored),))


def group_by_prompt(judged: Iterable[PairOrThumb]) -> list[list[PairOrThumb]]:
    """Pairs or thumbs of one prompt together, in the order the prompts came in; a group has at most MOST_PAIRS."""
    groups: dict[tuple[Message, ...], list[list[PairOrThumb]]] = {}
    for each in judged:
        of_prompt = groups.setdefault(each.prompt.messages, [[]])
        if len(of_prompt[-1]) == MOST_PAIRS:
            of_prompt.append([])
        of_prompt[-1].append(each)
    return [group for of_prompt in groups.values() for group in of_prompt]


def preference_tree(chat: ChatFormat, group: Sequence[PreferencePair]) -> PreferenceTree:
    """The pairs of one prompt, each distinct answer once."""
    texts = list(dict.fromkeys(text for pair in group for text in (pair.chosen, pair.rejected)))
    answers = tuple(TokenAnswer(ids=chat.answer(text)) for text in texts)
    return PreferenceTree(
        tree=Tree(prompt=chat.prompt(group[0].prompt), answers=answers),
        chosen=tuple(texts.index(pair.chosen) for pair in group),
        rejected=tuple(texts.index(pair.rejected) for pair in group),
        strength=tuple(pair.strength for pair in group))


def thumb_tree(chat: ChatFormat, group: Sequence[Thumb]) -> ThumbTree:
    """The thumbs of one prompt, each distinct answer once."""
    texts = list(dict.fromkeys(thumb.answer for thumb in group))
    return ThumbTree(
        tree=Tree(prompt=chat.prompt(group[0].prompt), answers=tuple(TokenAnswer(ids=chat.answer(t)) for t in texts)),
        judged=tuple(texts.index(thumb.answer) for thumb in group), good=tuple(thumb.good for thumb in group))


def fitting(run: Run, items: Sequence[T], lengths: Sequence[int], ids: Sequence[str], progress: Progress) -> list[T]:
    """The items of at most `max_length` tokens. By the run's `overlong`, others are an error or dropped and counted."""
    kept = [item for item, length in zip(items, lengths, strict=True) if length <= run.max_length]
    if len(kept) < len(items):
        i = next(i for i, length in enumerate(lengths) if length > run.max_length)
        if run.overlong == "error":
            raise DataError(f"{run.data}: row {ids[i]}: prompt and answer have {lengths[i]} tokens, over max_length "
                            f"{run.max_length}; raise max_length, shorten the row, or set overlong: drop")
        progress.say(f"Dropped {len(items) - len(kept)} of {len(items)} rows over {run.max_length} tokens.")
    if not kept:
        raise DataError(f"{run.data}: no row is left to train on")
    return kept


def file_of(data: str) -> Path:
    """The data file a run names. DataError if it can be neither a file nor a scenario."""
    path = Path(data)
    if not path.exists() and not path.suffix:
        raise DataError(f"{data}: no such data file, and no scenario of that name; scenarios are {', '.join(names())}")
    return path
