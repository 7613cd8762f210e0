"""A language model as a judge that compares two answers, each pair in both orders.

Nothing here learns. A judge prefers the place where an answer stands as well as the answer itself (Zheng et al. 2023,
arXiv:2306.05685 section 3.4, Wang et al. 2023, arXiv:2305.17926), so that an opinion counts only if both orders agree.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from rlhflab.data.chat import ChatFormat
from rlhflab.data.types import Message, Prompt, Rollout, Score
from rlhflab.model.shared import SharedModel
from rlhflab.rollout.reward_role import other_base
from rlhflab.rollout.sampling import sample
from rlhflab.rollout.scoring import Reward

Ask = Callable[[Sequence[Prompt]], Sequence[str | None]]
"""What the judge writes to each prompt; None where the prompt is longer than it can read."""
CRITERIA = "Judge how correct, helpful and short each answer is."
QUESTION = """\
Two assistants answered the conversation below. {criteria}

Conversation:
{conversation}

Answer A:
{a}

Answer B:
{b}

Which answer is better? Reply with one letter, A or B."""
LETTER = re.compile(r"\W*(?:answer\s+)?([ab])\W*", re.IGNORECASE)


def judge_reward(policy: SharedModel, micro_tokens: int, *, model: str | None = None, adapter: str | None = None,
                 against: Literal["samples", "reference"] = "samples", key: str = "value",
                 criteria: str = CRITERIA,
                 max_new_tokens: Annotated[int, Field(ge=1)] = 4) -> Reward:
    """A model's pairwise verdicts: the share of comparisons that an answer wins, in [0, 1].

    `model`: a base model by name, the policy's own base where absent; `adapter`: folder of its adapter. An answer is
    compared with the other samples for its prompt, or with the text at `key` of the prompt's facts. A verdict that
    cannot be read, or that changes with the order, does not count, nor does a comparison that does not fit the judge's
    context; without any that counts an answer is unscored.
    """
    judging = policy if model is None else other_base(model, policy)
    role = None
    if adapter is not None:
        role = "judge"
        judging.load_role(role, Path(adapter))
    ask, by = model_ask(judging, role=role, max_new_tokens=max_new_tokens), f"judge:{judging.base.name}"
    return lambda rollouts: judged(rollouts, ask, against=against, key=key, criteria=criteria, by=by)


def model_ask(judging: SharedModel, *, role: str | None, max_new_tokens: int) -> Ask:
    """What a loaded model writes, greedily; nothing to a prompt that is too long for it."""
    chat = ChatFormat(judging.tokenizer)

    def ask(questions: Sequence[Prompt]) -> list[str | None]:
        fit = [len(chat.prompt(each)) + max_new_tokens <= judging.context for each in questions]
        fitting = [each for each, fits in zip(questions, fit, strict=True) if fits]
        answers = iter(sample(judging, chat, fitting, role=role, samples=0, greedy=True,
                              max_new_tokens=max_new_tokens) if fitting else [])
        return [next(answers).text if fits else None for fits in fit]

    return ask


class Duel(NamedTuple):
    """Two different answers to one conversation; `a` comes first in the alphabet."""

    messages: tuple[Message, ...]
    a: str
    b: str

    @classmethod
    def of(cls, prompt: Prompt, one: str, other: str) -> "Duel":
        """The same duel, whichever of the two is named first."""
        return cls(prompt.messages, *sorted((one, other)))


class Verdict(NamedTuple):
    """Who won, or why nobody did."""

    winner: str | None
    reason: str = ""


def judged(rollouts: Sequence[Rollout], ask: Ask, *, against: Literal["samples", "reference"], key: str,
           criteria: str, by: str) -> list[Score]:
    """Each answer's share of won comparisons. Equal texts are worth a half to each other, without asking."""
    opponents = [_opponents(rollouts, i, against, key) for i in range(len(rollouts))]
    duels = list(dict.fromkeys(Duel.of(rollout.prompt, rollout.text, other)
                               for rollout, others in zip(rollouts, opponents, strict=True)
                               for other in others if other != rollout.text))
    verdicts = dict(zip(duels, decide(duels, ask, criteria), strict=True))
    return [_share_won(rollout, others, verdicts, by, nobody=f"row {rollout.prompt.id} has no text at {key!r} of its "
                       "facts" if against == "reference" else "there is no other sample for this prompt")
            for rollout, others in zip(rollouts, opponents, strict=True)]


def decide(duels: Sequence[Duel], ask: Ask, criteria: str) -> list[Verdict]:
    """Who wins each duel, asked in both orders."""
    questions = [question(each, criteria) for duel in duels for each in (duel, Duel(duel.messages, duel.b, duel.a))]
    written = ask(questions) if questions else []
    return [verdict(duel, *written[2 * i:2 * i + 2]) for i, duel in enumerate(duels)]


def question(duel: Duel, criteria: str) -> Prompt:
    """What the judge is asked."""
    conversation = "\n".join(f"{message.role}: {message.content}" for message in duel.messages)
    content = QUESTION.format(criteria=criteria, conversation=conversation, a=duel.a, b=duel.b)
    return Prompt(id="judge", messages=(Message(role="user", content=content),))


def verdict(duel: Duel, first: str | None, second: str | None) -> Verdict:
    """Of what the judge wrote on (a, b) and on (b, a)."""
    if first is None or second is None:
        return Verdict(None, "the conversation with both answers is longer than the judge's context")
    letters = [LETTER.fullmatch(text.strip()) for text in (first, second)]
    for text, letter in zip((first, second), letters, strict=True):
        if letter is None:
            return Verdict(None, f"the verdict {text[:40]!r} is neither A nor B")
    places = [letter[1].lower() for letter in letters if letter]
    if places[0] == places[1]:
        return Verdict(None, f"the judge chose place {places[0].upper()} in both orders")
    return Verdict(duel.a if places[0] == "a" else duel.b)


def _opponents(rollouts: Sequence[Rollout], i: int, against: Literal["samples", "reference"], key: str) -> list[str]:
    prompt = rollouts[i].prompt
    if against == "reference":
        text = prompt.facts.get(key)
        return [text] if isinstance(text, str) and text.strip() else []
    return [other.text for j, other in enumerate(rollouts) if j != i and other.prompt.messages == prompt.messages]


def _share_won(rollout: Rollout, others: Sequence[str], verdicts: Mapping[Duel, Verdict], by: str, *,
               nobody: str) -> Score:
    points, reasons = [0.5 for other in others if other == rollout.text], []
    for other in others:
        if other != rollout.text:
            winner, reason = verdicts[Duel.of(rollout.prompt, rollout.text, other)]
            if winner is None:
                reasons.append(reason)
            else:
                points.append(float(winner == rollout.text))
    if not points:
        return Score(value=None, by=by, reason=reasons[0] if reasons else nobody)
    return Score(value=sum(points) / len(points), by=by)
