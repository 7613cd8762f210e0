"""Prompts about short notes, from families of facts. No gold check, no answers, no text of any one domain.

A fact is a sentence that gives one entity one value. A prompt is a note of three to five facts and a question
that the note answers (75 %) or does not (25 %).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from random import Random

from rlhflab.data.types import Message, Prompt
from rlhflab.scenarios.base import Split
from rlhflab.scenarios.gold import contains, normalised
from rlhflab.scenarios.splits import dealt, distinct, owned

SYSTEM = "You answer questions from the note. If the note does not say, reply: I don't know."
LENGTH_LIMIT = "Answer in at most 12 words."
DEMANDS = {
    "none": "",
    "lower": "Use lower case only.",
    "prefix": "Start with Answer:",
    "no_commas": "Do not use commas.",
    "bullet": "Write one bullet point.",
    "json": 'Reply as JSON: {"answer": ...}',
}
"""Demand name to its words. The words are the same in all splits: a demand is a command to obey, not a fact to find."""

_DEMAND_DECK = ("none",) * 10 + tuple(name for name in DEMANDS if name != "none") * 3
_ANSWERABILITY_DECK = ("answerable",) * 6 + ("sibling", "other_family")

@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A type of value, such as a time of day; families of one kind share its values."""

    name: str
    values: tuple[str, ...]
    pattern: str = ""
    """Regular expression over normalised text for any value of this kind, or empty where only the list can tell."""

    def of(self, split: Split) -> list[str]:
        """The values of one split. Ordered by digest first, or a split would own, say, all quarter-past times."""
        return owned(sorted(self.values, key=lambda value: sha256(value.encode()).digest()), split)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One relation between entities and values, with the ways to state it and to ask for it."""

    name: str
    kind: Kind
    entities: tuple[str, ...]
    statements: tuple[str, ...]
    """Sentences with `{e}` (or `{E}`, capitalised) and `{v}`; at most 12 words, no comma."""
    questions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """One sentence of a note."""

    family: Family
    entity: str
    value: str
    sentence: str


def make_prompts(name: str, families: Sequence[Family], split: Split, n: int, *, seed: int) -> list[Prompt]:
    """`n` different prompts; a smaller `n` gives a prefix of a larger one."""
    return distinct(name, split, n, seed=seed, draw=partial(_prompt, name, families, split, seed))


def _prompt(
    name: str, families: Sequence[Family], split: Split, seed: int, index: int, random: Random
) -> Prompt:
    key = f"{name}/{split}/{seed}"
    answerability = dealt(_ANSWERABILITY_DECK, index, f"{key}/answerability")
    demand = dealt(_DEMAND_DECK, index, f"{key}/demand")
    family = dealt(families, index, f"{key}/family")
    entity = random.choice(owned(family.entities, split))
    question = _worded(random.choice(owned(family.questions, split)), entity)
    note = _note(families, family, entity, answerability, split, random)
    asked = next((fact for fact in note if fact.family is family and fact.entity == entity), None)
    text = f"Note: {' '.join(fact.sentence for fact in note)}\n{question} {LENGTH_LIMIT} {DEMANDS[demand]}".strip()
    facts = {
        "scenario": name,
        "split": split,
        "family": family.name,
        "kind": family.kind.name,
        "entity": entity,
        "question": question,
        "answerability": answerability,
        "answerable": asked is not None,
        "demand": demand,
        "right": asked.value if asked else None,
        "sentence": asked.sentence if asked else None,
        "note_sentences": [fact.sentence for fact in note],
        "note_values": [fact.value for fact in note],
        "note_families": [fact.family.name for fact in note],
        "wrong_values": [value for value in family.kind.values if asked is None or value != asked.value],
        "pattern": family.kind.pattern,
    }
    messages = (Message(role="system", content=SYSTEM), Message(role="user", content=text))
    return Prompt(id=f"{name}-{split}-{seed}-{index}", messages=messages, facts=facts)


def _note(
    families: Sequence[Family], asked: Family, entity: str, answerability: str, split: Split, random: Random
) -> list[Fact]:
    """Three to five facts, of which the asked one only where the prompt is answerable; at most two of a family."""
    size = random.choice((3, 3, 4, 4, 5))
    note: list[Fact] = []
    if answerability == "answerable":
        note.append(_fact(asked, entity, note, split, random))
    sibling_too = answerability == "sibling" or (answerability == "answerable" and random.random() < 0.35)
    if sibling_too:
        other = random.choice([e for e in owned(asked.entities, split) if e != entity])
        note.append(_fact(asked, other, note, split, random))
    others = random.sample([family for family in families if family is not asked], size - len(note))
    for family in others:
        note.append(_fact(family, random.choice(owned(family.entities, split)), note, split, random))
    random.shuffle(note)
    return note


def _fact(family: Family, entity: str, note: Sequence[Fact], split: Split, random: Random) -> Fact:
    """A fact whose value neither holds nor is held by a value of the note: "3" must not be found in "3 days"."""
    while True:
        value = random.choice(family.kind.of(split))
        if not any(_overlap(value, fact.value) for fact in note):
            break
    sentence = _worded(random.choice(owned(family.statements, split)), entity, value)
    return Fact(family, entity, value, sentence)


def _overlap(a: str, b: str) -> bool:
    return contains(normalised(a), normalised(b)) or contains(normalised(b), normalised(a))


def _worded(template: str, entity: str, value: str = "") -> str:
    return template.format(e=entity, E=entity[0].upper() + entity[1:], v=value)
