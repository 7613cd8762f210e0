"""Behaviour dials: one right answer in eight styles, and rules that read a style off an answer. No model, no training.

Three axes: tone, verbosity, clarity. What an answer says, and the ends of the other axes, do not change along an axis.
The measures are rules on words, in English; they are not human judgement.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, NamedTuple

from rlhflab.data.types import Conversation, Message, PreferencePair, Prompt
from rlhflab.scenarios.answers import ABSTENTION, in_demand
from rlhflab.scenarios.gold import ABSTAIN_PHRASES, contains, count_words, has_phrase, normalised, unwrapped
from rlhflab.scenarios.notes import LENGTH_LIMIT


class Style(NamedTuple):
    """Which end of each axis an answer is written at; True is the end that the dial turns to."""

    tone: bool
    verbosity: bool
    clarity: bool


# Both ends of tone have three words, and both ends of clarity about eleven: tone and clarity must not move verbosity.
WARM = ("Thanks for asking!", "Glad to help!", "Happy to help!", "Thank you kindly!", "You are welcome!")
CURT = ("Read it yourself.", "Stop asking me.", "Look it up.", "Not my job.", "Leave me alone.")
_SURE = ("The note says so.", "It is in the note.", "That is in the note.")
_ROUNDABOUT = (
    "An indication of {v} would appear to exist for {e}.",
    "There may possibly be an indication of {v} for {e}.",
    "The determination for {e} would seem to be {v}.",
)
_UNSURE = ("The note does not say.", "It is not in the note.")
_ROUNDABOUT_UNSURE = (
    "The existence of an indication would seem doubtful: I don't know.",
    "There may possibly be no indication, so I am not sure.",
    "A determination would not appear to exist, so I don't know.",
)
_FULL = ("In other words, the answer to your question is {v}.", "I took this from the sentence about {e}.",
         "Nothing else in the note changes that.")
_FULL_UNSURE = ("I went through every sentence of the note to look for it.",
                "Nothing in it gives an answer to your question.", "Somebody else may be able to tell you more.")
FULL_SENTENCES = 2

POLITE = ("thank you", "thanks", "glad to", "happy to", "you are welcome", "you're welcome", "please", "a pleasure",
          "hope this helps", "hope that helps")
RUDE = ("yourself", "stop asking", "look it up", "not my job", "leave me alone", "do not bother", "don't bother",
        "waste my time", "hurry up")
HEDGES = ("would appear", "would seem", "may possibly", "might", "perhaps", "possibly", "arguably", "presumably",
          "it seems", "seems to", "appears to", "could be", "to some extent", "doubtful")
_NOMINAL = re.compile(r"\b[a-z]{5,}(?:tion|sion|ment|ance|ence|ity|ness)s?\b")
"""An action or a quality as a noun, by its ending."""


def written(prompt: Prompt, style: Style, random: Random) -> str:
    """A right answer in this style, as the prompt's demand wants it."""
    facts = prompt.facts
    known = bool(facts["answerable"])
    words = {"v": facts["right"], "e": facts["entity"]}
    # Drawn in an order in which no end changes what is drawn for the other axes: pairs differ in one place alone.
    close = random.choice(WARM if style.tone else CURT)
    more = random.sample(_FULL if known else _FULL_UNSURE, FULL_SENTENCES)
    if style.clarity:
        head = f"{facts['sentence'] if known else ABSTENTION} {random.choice(_SURE if known else _UNSURE)}"
    else:
        head = random.choice(_ROUNDABOUT if known else _ROUNDABOUT_UNSURE).format(**words)
    parts = (head, *(each.format(**words) for each in more if style.verbosity), close)
    return in_demand(" ".join(parts), facts["demand"])


def without_limit(prompt: Prompt) -> Prompt:
    """The prompt without its limit on words, which the dial of verbosity would teach to disobey."""
    *before, last = prompt.messages
    content = re.sub(r"[ ]+$", "", last.content.replace(f"{LENGTH_LIMIT} ", "").replace(LENGTH_LIMIT, ""))
    return replace(prompt, messages=(*before, replace(last, content=content)))


def demonstrations(prompts: Sequence[Prompt], *, seed: int) -> list[Conversation]:
    """One right answer to each prompt, every axis at either end by a coin of its own: dials start in the middle."""
    made = []
    for prompt in prompts:
        random = Random(f"dial/demonstration/{seed}/{prompt.id}")
        answer = Message(role="assistant", content=written(prompt, _drawn(random), random))
        made.append(Conversation(id=prompt.id, messages=(*prompt.messages, answer)))
    return made


def pairs(axis: str, prompts: Sequence[Prompt], *, seed: int) -> list[PreferencePair]:
    """One pair a prompt: both answers right and alike on the other axes, chosen and rejected at the ends of `axis`."""
    made = []
    for prompt in prompts:
        random = Random(f"dial/{axis}/{seed}/{prompt.id}")
        style, state = _drawn(random), random.getstate()
        sides = []
        for end in (True, False):
            random.setstate(state)
            sides.append(written(prompt, style._replace(**{axis: end}), random))
        made.append(PreferencePair(prompt=prompt, chosen=sides[0], rejected=sides[1], source=f"rule: {axis}"))
    return made


def _drawn(random: Random) -> Style:
    return Style(*(random.random() < 0.5 for _ in Style._fields))


# ---- measures ---------------------------------------------------------------------------------------------------


def tone(prompt: Prompt, answer: str) -> float:
    """1 polite, -1 rude, 0 neither or both."""
    text = _text(prompt, answer)
    return float(has_phrase(text, POLITE)) - float(has_phrase(text, RUDE))


def verbosity(prompt: Prompt, answer: str) -> float:
    """Words, without the wrapper that the demand asks for."""
    return float(count_words(_text(prompt, answer)))


def clarity(prompt: Prompt, answer: str) -> float:
    """Thirds: no hedge; no action or quality as a noun of the answer's own; a first sentence that says the answer."""
    text = _text(prompt, answer)
    if not count_words(text):
        return 0.0
    first = re.split(r"(?<=[.!?])\s+", text)[0]
    answers = (contains(normalised(first), normalised(prompt.facts["right"])) if prompt.facts["answerable"]
               else has_phrase(first, ABSTAIN_PHRASES))
    direct = answers and not _hedged(first) and not _nominal(prompt, first)
    return (float(not _hedged(text)) + float(not _nominal(prompt, text)) + float(direct)) / 3.0


def _text(prompt: Prompt, answer: str) -> str:
    inner = unwrapped(answer, prompt.facts["demand"])
    return answer if inner is None else inner


def _hedged(text: str) -> bool:
    return has_phrase(text, HEDGES)


def _nominal(prompt: Prompt, text: str) -> bool:
    """Whether the text has such a noun that the prompt has not."""
    asked = " ".join(message.content for message in prompt.messages).casefold()
    return any(found not in asked for found in _NOMINAL.findall(text.casefold()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What a dial turns."""

    name: str
    says: str
    """From which end to which."""
    unit: str
    measure: Callable[[Prompt, str], float]


AXES: Mapping[str, Axis] = {axis.name: axis for axis in (
    Axis(name="tone", says="from curt to warm and polite", unit="1 polite, -1 rude", measure=tone),
    Axis(name="verbosity", says="from short to full", unit="words", measure=verbosity),
    Axis(name="clarity", says="from hedged and roundabout to plain and direct", unit="share of three rules kept",
         measure=clarity),
)}


def measured(prompt: Prompt, answer: str) -> dict[str, Any]:
    """Every axis, read off one answer."""
    return {name: axis.measure(prompt, answer) for name, axis in AXES.items()}
