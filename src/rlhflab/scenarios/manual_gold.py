"""The gold check of an answer about a tool's manual: JSON is parsed, a code block taken out, a command line split.

Nothing is run. All it needs stands in `Prompt.facts` as JSON values, so gold can be computed again from a stored row.
"""

import re
import shlex
from collections.abc import Mapping
from typing import Any

from rlhflab.scenarios.checks import EMPTY, Check, assembled, knowledge
from rlhflab.scenarios.gold import (
    ABSTAIN_PHRASES,
    CONFIDENCE_MARKERS,
    contains,
    count_sentences,
    count_words,
    distractor,
    has_phrase,
    json_values,
    loose_readings,
    normalised,
)
from rlhflab.scenarios.manuals import keys_of

_OPTION = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
_BLOCK = re.compile(r"```[a-z]*\n(.*?)\n?```", re.DOTALL)
_ONE_LINE_BLOCK = re.compile(r"```(?:sh|bash|shell|console|text)?\n([^\n`]+)\n```")
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


def check(facts: Mapping[str, Any], answer: str, *, stopped: bool = True) -> Check:
    """Judge one answer against the facts of its prompt."""
    inner = unwrapped(facts, answer)
    text = answer.strip() if inner is None else inner
    words = count_words(text)
    if not words:
        return EMPTY
    has_right, wrong = _FINDERS[facts["family"]](facts, text)
    tool = said_tool(facts, answer)
    if tool not in (None, facts["tool"]):
        has_right, wrong = False, f"{tool} for the tool"
    found = knowledge(facts, source="manual", phrase=has_phrase(text, ABSTAIN_PHRASES), has_right=has_right,
                      wrong=wrong)
    return assembled(found, demand=facts["demand"], words=words, sentences=count_sentences(text), stopped=stopped,
                     confident=has_phrase(text, CONFIDENCE_MARKERS), met=inner is not None,
                     loosely=meets_loosely(facts, answer))


def unwrapped(facts: Mapping[str, Any], answer: str) -> str | None:
    """The answer without the wrapper its demand asks for, or None where the demand is not met as emitted.

    An abstention is no command, so it stands without a code block.
    """
    text = answer.strip()
    if facts["demand"] in ("json", "json_tool"):
        values = json_values(text, keys_of(facts))
        return None if values is None else values[-1]
    if facts["demand"] == "fence":
        block = _ONE_LINE_BLOCK.fullmatch(text)
        if block:
            return block[1].strip()
        return text if "`" not in text and has_phrase(text, ABSTAIN_PHRASES) else None
    return text if "\n" not in text else None


def meets_loosely(facts: Mapping[str, Any], answer: str) -> bool:
    """The demand, tried also without fences and without the first or last line, or of the one block of the answer."""
    blocks = _BLOCK.findall(answer)
    if facts["demand"] == "fence" and len(blocks) == 1:
        return "\n" not in blocks[0].strip()
    return any(unwrapped(facts, text) for text in loose_readings(answer))


def said_tool(facts: Mapping[str, Any], answer: str) -> str | None:
    """What a JSON answer gives for the tool, where it was asked for."""
    values = json_values(answer.strip(), keys_of(facts)) if facts["demand"] == "json_tool" else None
    return values[0] if values else None


def _find_option(facts: Mapping[str, Any], text: str) -> tuple[bool, str | None]:
    """(the right option is named, the first other one)."""
    named = _OPTION.findall(text)
    right = [name for name in named if name in facts["right_names"]]
    return bool(right), next((name for name in named if name not in facts["right_names"]), None)


def _find_default(facts: Mapping[str, Any], text: str) -> tuple[bool, str | None]:
    """(the right value is given, the first other value); names of options are no values."""
    rest = _OPTION.sub(" ", text)
    right = facts["right"]
    return right is not None and contains(normalised(rest), normalised(right)), distractor(facts, rest)


def _find_command(facts: Mapping[str, Any], text: str) -> tuple[bool, str | None]:
    """(the right command is given, what is wrong with the first other one)."""
    faults = [fault_of(facts, command) for command in commands(facts, text)]
    return None in faults, next((fault for fault in faults if fault is not None), None)


_FINDERS = {"option": _find_option, "default": _find_default, "command": _find_command}


def commands(facts: Mapping[str, Any], text: str) -> list[str]:
    """Command lines of the text: lines of its code blocks, else what stands between backticks, else the tool's name
    with the rest of its line.
    """
    lines = [line.strip() for block in _BLOCK.findall(text) for line in block.splitlines() if line.strip()]
    lines = lines or [span.strip() for span in _SPAN.findall(text) if len(span.split()) > 1]
    if lines:
        return lines
    bare = re.findall(rf"(?<!\S){re.escape(facts['tool'])}(?!\S)[^\n]*", text)
    return [line.rstrip().rstrip(".!") for line in bare]


def fault_of(facts: Mapping[str, Any], command: str) -> str | None:
    """What is wrong with a command line, None where it does what was asked. The order of options is free."""
    if not facts["answerable"]:
        return f"the command {command!r}"
    try:
        words = shlex.split(command.removeprefix("$ "))
    except ValueError:
        return f"{command!r}, which is no command line,"
    if not words or words[0] != facts["tool"]:
        return f"another command than {facts['tool']}"
    given: dict[str, str | None] = {}
    files, rest = [], words[1:]
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            files.append(word)
            continue
        name, attached = _name_and_value(word)
        listed = next((each for each in facts["options"] if name in each["names"]), None)
        if listed is None:
            return f"the option {name}, which the manual does not list,"
        if listed["names"][0] in given or (attached is not None and not listed["argument"]):
            return f"{word}, which does not fit,"
        value = attached if attached is not None or not listed["argument"] else rest.pop(0) if rest else ""
        given[listed["names"][0]] = value
    if files != [facts["file"]]:
        return f"the files {' '.join(files) or '(none)'}"
    return None if given == facts["wanted"] else f"other options than asked for in {command!r}"


def _name_and_value(word: str) -> tuple[str, str | None]:
    """`--depth=3` and `-d3` with their value, `--depth` without."""
    if word.startswith("--"):
        name, equals, value = word.partition("=")
        return name, value if equals else None
    return word[:2], word[2:] or None
