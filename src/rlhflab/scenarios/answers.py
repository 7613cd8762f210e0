"""Ways to answer a note question: plain, confident, verbose, abstaining, wrong. Writes answers, judges none.

Demonstrations are written here, and so is the pool of answers, like those of a model after SFT, on which the
annotators are calibrated.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from rlhflab.data.types import Conversation, Message, Prompt

ABSTENTION = "I don't know."

OPENERS = ("Certainly!", "Absolutely!", "Of course!", "Without a doubt:", "Definitely!")
_ASSURANCES = (
    "This is clearly stated in the note.",
    "This is definitely correct.",
    "There is no doubt about it.",
    "You can be sure that this is clearly right.",
    "The note is absolutely clear about this.",
)
_PADDING = (
    "I read this in the note.",
    "The note says so in one of its sentences.",
    "That is the answer to your question.",
    "I hope that this helps you with your question.",
    "Please let me know if you need anything else.",
    "I looked through the whole note to find this for you.",
)


def in_demand(text: str, demand: str) -> str:
    """The text as the demand wants it."""
    dressed: dict[str, Callable[[str], str]] = {
        "none": str,
        "lower": str.lower,
        "prefix": lambda t: f"Answer: {t}",
        "no_commas": lambda t: t.replace(",", ""),
        "bullet": lambda t: f"- {t}",
        "json": lambda t: json.dumps({"answer": t}, ensure_ascii=False),
    }
    return dressed[demand](text)


def plain(sentence: str, value: str, random: Random) -> str:
    """The sentence of the note, or now and then the value alone."""
    return sentence if random.random() < 0.6 else f"{value[0].upper()}{value[1:]}."


def confident(sentence: str, random: Random) -> str:
    """The sentence between an opener and an assurance."""
    opener = random.choice(OPENERS)
    assurances = random.sample(_ASSURANCES, random.choice((0, 1, 1)))
    return " ".join((opener, sentence, *assurances))


def verbose(sentence: str, random: Random) -> str:
    """The sentence, then sentences that are true and needless."""
    return " ".join((sentence, *random.sample(_PADDING, random.choice((1, 1, 2)))))


def mixed(sentence: str, demand: str, random: Random) -> str:
    """Confident, verbose or both; the demand is forgotten half of the time, as such answers tend to do."""
    style = random.choice(("confident", "confident", "confident", "verbose", "verbose", "both"))
    text = verbose(sentence, random) if style == "verbose" else confident(sentence, random)
    if style == "both":
        text = f"{text} {random.choice(_PADDING)}"
    return in_demand(text, demand) if random.random() < 0.5 else text


def demonstrations(prompts: Sequence[Prompt], *, answer: Callable[[Mapping[str, Any], bool, Random], str],
                   share_mixed: float, seed: int) -> list[Conversation]:
    """One answer to each prompt. RL can only find what SFT samples, so the answerable ones come in both styles.

    `answer` writes it from the prompt's facts; its second argument says whether it is in mixed style.
    """
    conversations = []
    answerable = 0
    for prompt in prompts:
        random = Random(f"demonstration/{seed}/{prompt.id}")
        is_mixed = False
        if prompt.facts["answerable"]:
            # Every 1/share-th answerable prompt: the exact share, and stable when more prompts follow.
            is_mixed = int((answerable + 1) * share_mixed) > int(answerable * share_mixed)
            answerable += 1
        turn = Message(role="assistant", content=answer(prompt.facts, is_mixed, random))
        conversations.append(Conversation(id=prompt.id, messages=(*prompt.messages, turn)))
    return conversations


def demonstration(facts: Mapping[str, Any], is_mixed: bool, random: Random) -> str:
    """A right answer: the abstention, or the sentence of the note in plain or mixed style."""
    if not facts["answerable"]:
        return in_demand(ABSTENTION, facts["demand"])
    if is_mixed:
        return mixed(facts["sentence"], facts["demand"], random)
    return in_demand(plain(facts["sentence"], facts["right"], random), facts["demand"])


def like_after_sft(prompt: Prompt, random: Random) -> str:
    """An answer as a small model samples it after SFT in mixed style. Rates follow the project's first sketch."""
    facts = prompt.facts
    abstains = random.random() < (0.06 if facts["answerable"] else 0.43)
    if abstains:
        sentence, value = ABSTENTION, ABSTENTION[:-1]
    else:
        sentence, value = claim(facts, random, right=0.68)
    style = random.random()
    if style < 0.34 and not abstains:
        return mixed(sentence, facts["demand"], random)
    text = plain(sentence, value, random)
    return text if random.random() < 0.15 else in_demand(text, facts["demand"])


def claim(facts: Mapping[str, Any], random: Random, *, right: float) -> tuple[str, str]:
    """A sentence and its value: right with this probability, else a made-up value or another one of the note."""
    if facts["answerable"] and random.random() < right:
        return facts["sentence"], facts["right"]
    others = [(sentence, value) for sentence, value in zip(facts["note_sentences"], facts["note_values"], strict=True)
              if value != facts["right"]]
    sentence, value = random.choice(others)
    if random.random() < 0.5:
        return sentence, value
    made_up = random.choice(facts["wrong_values"])
    if facts["answerable"]:
        return facts["sentence"].replace(facts["right"], made_up), made_up
    return f"The note says {made_up} for {facts['entity']}.", made_up


def right_answer(facts: Mapping[str, Any]) -> str:
    """The sentence of the note, or the abstention where no sentence answers, as the demand wants it."""
    return in_demand(facts["sentence"] if facts["answerable"] else ABSTENTION, facts["demand"])


def wrong_answer(facts: Mapping[str, Any], random: Random) -> str:
    """A plain claim that does not answer the question, as the demand wants it."""
    return in_demand(claim(facts, random, right=0.0)[0], facts["demand"])
