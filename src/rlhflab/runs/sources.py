"""From `data:` of a run file to what a loop trains on: a JSONL file, or a scenario that makes its own data."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from rlhflab.config import DpoRun, PpoRun, RewardRun, Run
from rlhflab.core.batch import TokenAnswer, Tree
from rlhflab.data.chat import ChatFormat
from rlhflab.data.formats import read_conversations, read_pairs, read_prompts
from rlhflab.data.types import Conversation, PreferencePair, Prompt
from rlhflab.errors import DataError
from rlhflab.progress import Progress
from rlhflab.runs.lab import Lab
from rlhflab.runs.preferences import collect_pairs
from rlhflab.scenarios import names, scenario
from rlhflab.scenarios.base import Scenario

T = TypeVar("T")


def gold_of(run: Run) -> Scenario | None:
    """The scenario whose gold check can judge this run's answers, if there is one."""
    name = run.gold or (run.data if run.data in names() else None)
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


def prompts(run: PpoRun) -> list[Prompt]:
    """Prompts of a PPO run."""
    if run.data in names():
        return scenario(run.data).prompts("rl", run.examples, seed=run.seed)
    return read_prompts(file_of(run.data))


def conversation_tree(chat: ChatFormat, conversation: Conversation) -> Tree:
    """The conversation as one prompt and one answer in which only the assistant's tokens are scored."""
    ids = chat.conversation(conversation)
    return Tree(prompt=ids.prompt, answers=(TokenAnswer(ids=ids.ids, scored=ids.scored),))


def pair_tree(chat: ChatFormat, pair: PreferencePair) -> Tree:
    """The prompt with the chosen answer first and the rejected one second."""
    answers = tuple(TokenAnswer(ids=chat.answer(text)) for text in (pair.chosen, pair.rejected))
    return Tree(prompt=chat.prompt(pair.prompt), answers=answers)


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
