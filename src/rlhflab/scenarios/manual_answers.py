"""Ways to answer about a manual: plain, confident, verbose, abstaining, wrong. Writes answers, judges none."""

import json
from collections.abc import Mapping
from random import Random
from typing import Any

from rlhflab.data.types import Prompt
from rlhflab.scenarios.answers import OPENERS
from rlhflab.scenarios.manuals import ABSTENTION, keys_of

_ASSURANCES = (
    "This is clearly stated in the manual.",
    "This is definitely correct.",
    "There is no doubt about it.",
    "The manual is absolutely clear about this.",
)
_PADDING = (
    "I read this in the manual.",
    "The manual says so in its list of options.",
    "I hope that this helps you with the tool.",
    "Please let me know if you need anything else.",
)


def sentence(facts: Mapping[str, Any], value: str, random: Random) -> str:
    """A plain sentence that gives this value, or now and then the value alone."""
    if facts["family"] == "command":
        return f"Run `{value}`." if random.random() < 0.6 else f"`{value}`"
    if random.random() >= 0.6:
        return f"{value}."
    return f"The option is {value}." if facts["family"] == "option" else f"The default of {facts['asked']} is {value}."


def in_demand(facts: Mapping[str, Any], value: str, plain: str) -> str:
    """`value` in the wrapper that is asked for; `plain` where none is."""
    if facts["demand"] == "fence":
        return ABSTENTION if value == ABSTENTION else f"```\n{value}\n```"
    if facts["demand"] == "none":
        return plain
    return json.dumps(dict(zip(keys_of(facts), (facts["tool"], value)[-len(keys_of(facts)):], strict=True)))


def mixed(facts: Mapping[str, Any], value: str, plain: str, random: Random) -> str:
    """Confident, verbose or both; the demand is forgotten half of the time, as such answers tend to do.

    Nothing but the command fits into a code block, so where that demand is kept, no style is left.
    """
    style = random.choice(("confident", "confident", "confident", "verbose", "verbose", "both"))
    parts = [plain]
    if style != "verbose":
        parts = [random.choice(OPENERS), *parts, *random.sample(_ASSURANCES, random.choice((0, 1, 1)))]
    if style != "confident":
        parts += random.sample(_PADDING, random.choice((1, 1, 2)))
    text = " ".join(parts)
    if random.random() < 0.5:
        return text
    return in_demand(facts, value if facts["demand"] == "fence" else text, text)


def demonstration(facts: Mapping[str, Any], is_mixed: bool, random: Random) -> str:
    """A right answer: the abstention, or the value in plain or mixed style."""
    if not facts["answerable"]:
        return in_demand(facts, ABSTENTION, ABSTENTION)
    value = facts["right"]
    plain = sentence(facts, value, random)
    return mixed(facts, value, plain, random) if is_mixed else in_demand(facts, value, plain)


def wrong_value(facts: Mapping[str, Any], random: Random) -> str:
    """A value of the right kind that does not answer the question."""
    return str(random.choice(facts["wrong_values"]))


def like_after_sft(prompt: Prompt, random: Random) -> str:
    """An answer as a small model samples it after SFT in mixed style. Rates are those of the scenario helpdesk."""
    facts = prompt.facts
    if random.random() < (0.06 if facts["answerable"] else 0.43):
        value = plain = ABSTENTION
    else:
        right = facts["answerable"] and random.random() < 0.68
        value = facts["right"] if right else wrong_value(facts, random)
        plain = sentence(facts, value, random)
    if random.random() < 0.34 and value != ABSTENTION:
        return mixed(facts, value, plain, random)
    return plain if random.random() < 0.15 else in_demand(facts, value, plain)
