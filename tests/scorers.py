"""Functions that run files of the tests name as rewards."""

from collections.abc import Mapping, Sequence


def none_for_empty(messages: Sequence[Mapping[str, str]], answer: str) -> float | None:
    """Length of an answer to a user; nothing for an empty one."""
    return len(answer) if answer and messages[-1]["role"] == "user" else None


def never(messages: Sequence[Mapping[str, str]], answer: str) -> float | None:
    """A judge that never says anything."""
    return None


def early_letters(messages: Sequence[Mapping[str, str]], answer: str) -> float:
    """Share of the letters a to m: something a tiny model can learn to write more of."""
    return sum("a" <= letter <= "m" for letter in answer) / max(1, len(answer))


def minus_ten(messages: Sequence[Mapping[str, str]], answer: str) -> float:
    """Far below zero, whatever the answer."""
    return -10.0


def nan(messages: Sequence[Mapping[str, str]], answer: str) -> float:
    """What a division of zeros would give."""
    return float("nan")


def infinite(messages: Sequence[Mapping[str, str]], answer: str) -> float:
    """An overflow."""
    return float("inf")
