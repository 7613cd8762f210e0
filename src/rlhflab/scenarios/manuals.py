"""Prompts about the manual of a command-line tool: which option, which default, which command. No gold check here.

A manual is a synopsis and four or five options. 75 % of the questions can be answered from it; the others ask for what
no option of the manual does, or for a default that it does not give.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from random import Random
from typing import Any, NamedTuple

from rlhflab.data.types import Message, Prompt
from rlhflab.scenarios.base import Split
from rlhflab.scenarios.splits import dealt, distinct, owned
from rlhflab.scenarios.tools import ASK_COMMAND, ASK_DEFAULT, ASK_OPTION, FILES, FLAGS, TOOLS, VALUED, Option

ABSTENTION = "The manual does not say."
SYSTEM = (f"You answer questions from the manual of a command-line tool, in at most 12 words. If the manual does not "
          f"say, reply: {ABSTENTION}")
FAMILIES: Mapping[str, str] = {
    "option": "which option does something",
    "default": "the default of an option",
    "command": "the command line that does one or two things to a file",
}
DEMANDS: Mapping[str, str] = {
    "none": "",
    "json": 'Reply as JSON: {{"{key}": ...}}',
    "json_tool": 'Reply as JSON: {{"tool": ..., "{key}": ...}}',
    "fence": "Reply with a code block that holds the command alone.",
}
"""Demand name to its words; `key` is the family's name. Only a command goes into a code block."""
_DEMAND_DECKS = {"option": ("none", "none", "json", "json_tool"), "default": ("none", "none", "json", "json_tool"),
                 "command": ("none", "json", "fence", "fence")}
_ANSWERABILITY_DECK = ("answerable", "answerable", "answerable", "absent")


class Listed(NamedTuple):
    """One option as a manual lists it."""

    option: Option
    names: tuple[str, ...]
    """The long name, then the short one where there is one."""
    default: str | None


def make_prompts(name: str, split: Split, n: int, *, seed: int) -> list[Prompt]:
    """`n` different prompts; a smaller `n` gives a prefix of a larger one."""
    return distinct(name, split, n, seed=seed, draw=partial(_prompt, name, split, seed))


def keys_of(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Keys of the JSON object that is asked for, the answer's last."""
    return ("tool", facts["family"]) if facts["demand"] == "json_tool" else (facts["family"],)


def _prompt(name: str, split: Split, seed: int, index: int, random: Random) -> Prompt:
    key = f"{name}/{split}/{seed}"
    family = dealt(tuple(FAMILIES), index, f"{key}/family")
    rounds = index // len(FAMILIES)  # decks of each family on its own: exact shares within it
    answerable = dealt(_ANSWERABILITY_DECK, rounds, f"{key}/{family}/answerability") == "answerable"
    demand = dealt(_DEMAND_DECKS[family], rounds, f"{key}/{family}/demand")
    tool = random.choice(owned(TOOLS, split))
    manual = _manual(split, random, silent=family == "default" and not answerable)
    facts: dict[str, Any] = {
        "scenario": name, "split": split, "family": family, "demand": demand, "answerable": answerable, "tool": tool,
        "options": [{"names": list(each.names), "argument": each.option.argument} for each in manual]}
    ask = {"option": _ask_option, "default": _ask_default, "command": _ask_command}[family]
    facts |= ask(tool, manual, answerable, split, random)
    lines = "\n".join((f"{tool} [options] FILE", *map(_line, manual)))
    text = f"Manual:\n{lines}\n{facts['question']} {DEMANDS[demand].format(key=family)}".strip()
    return Prompt(id=f"{name}-{split}-{seed}-{index}", facts=facts, messages=(
        Message(role="system", content=SYSTEM), Message(role="user", content=text)))


def _manual(split: Split, random: Random, *, silent: bool) -> list[Listed]:
    """Options of a tool, two or three of them with an argument; `silent`: one of these has no default."""
    chosen = [*random.sample(owned(VALUED, split), random.choice((2, 3))), *random.sample(owned(FLAGS, split), 2)]
    without = chosen[0].name
    random.shuffle(chosen)
    manual: list[Listed] = []
    for option in chosen:
        taken = {name for each in manual for name in each.names}
        short = f"-{option.name[2]}"
        names = (option.name, short) if random.random() < 0.5 and short not in taken else (option.name,)
        default = None
        if option.kind and not (silent and option.name == without):
            default = _value(option, random, split, [each.default for each in manual])
        manual.append(Listed(option, names, default))
    return manual


def _value(option: Option, random: Random, split: Split, taken: Sequence[str | None]) -> str:
    assert option.kind is not None
    return random.choice([value for value in option.kind.of(split) if value not in taken] or option.kind.of(split))


def _line(listed: Listed) -> str:
    """One option in the manual, such as `  -d, --depth N: search N levels deep (default: 4)`."""
    option = listed.option
    name = ", ".join(reversed(listed.names)) + (f" {option.argument}" if option.argument else "")
    default = f" (default: {listed.default})" if listed.default else ""
    return f"  {name}: {option.does.format(option.argument)}{default}"


def _ask_option(tool: str, manual: Sequence[Listed], answerable: bool, split: Split, random: Random) -> dict[str, Any]:
    asked = random.choice(manual) if answerable else _absent(manual, split, random)
    does = asked.option.does.format(_value(asked.option, random, split, [asked.default]) if asked.option.kind else "")
    question = random.choice(owned(ASK_OPTION, split)).format(t=tool, p=does)
    return {"question": question, "right": asked.names[0] if answerable else None,
            "right_names": list(asked.names) if answerable else [],
            "wrong_values": [each.names[0] for each in manual if each is not asked]}


def _ask_default(tool: str, manual: Sequence[Listed], answerable: bool, split: Split, random: Random) -> dict[str, Any]:
    asked = random.choice([each for each in manual if each.option.kind and (each.default is not None) == answerable])
    assert asked.option.kind is not None
    question = random.choice(owned(ASK_DEFAULT, split)).format(t=tool, o=asked.names[0])
    others = [value for value in asked.option.kind.values if value != asked.default]
    return {"question": question, "right": asked.default, "asked": asked.names[0], "wrong_values": others,
            "note_values": [each.default for each in manual if each.default and each is not asked],
            "pattern": asked.option.kind.pattern}


def _ask_command(tool: str, manual: Sequence[Listed], answerable: bool, split: Split, random: Random) -> dict[str, Any]:
    asked = random.sample(list(manual), random.choice((1, 1, 2)))
    if not answerable:
        asked[-1] = _absent(manual, split, random)
    file = random.choice(owned(FILES, split))
    wanted = [(each, _value(each.option, random, split, [each.default]) if each.option.kind else None)
              for each in asked]
    does = " and ".join(each.option.does.format(value) for each, value in wanted)
    question = random.choice(owned(ASK_COMMAND, split)).format(t=tool, p=does, f=file)
    words = [tool, *(word for each, value in wanted for word in (each.names[0], value) if word), file]
    return {"question": question, "right": " ".join(words) if answerable else None, "file": file,
            "wanted": {each.names[0]: value for each, value in wanted} if answerable else {},
            "wrong_values": [f"{tool} {each.names[0]} {file}" for each in manual]}


def _absent(manual: Sequence[Listed], split: Split, random: Random) -> Listed:
    """An option of the split that the manual does not list."""
    listed = {each.option.name for each in manual}
    option = random.choice([each for each in (*owned(VALUED, split), *owned(FLAGS, split)) if each.name not in listed])
    return Listed(option, (option.name,), None)
