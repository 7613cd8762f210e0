"""Small annotation stores, and annotators that judge in them without a browser."""

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from rlhflab.data.judging import Item, Opinion, Plan
from rlhflab.data.store import Store
from rlhflab.data.types import Message, Prompt

ALWAYS = Plan(gold_every=0)
"""Nothing but what waits."""


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 26, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_hours(self, hours: float) -> None:
        self.now += timedelta(hours=hours)


def item(i: int = 0, *, a: str = "right", b: str | None = "wrong", gold: str | None = None) -> Item:
    return Item(prompt=Prompt(id=f"p{i}", messages=(Message(role="user", content=f"Question {i}?"),)), a=a, b=b,
                gold=gold)


def store_with(place: Path | str, n: int = 3, *, people: tuple[str, ...] = ("anna", "ben"), overlap: int = 1,
               gold: int = 0, clock: Clock | None = None) -> Store:
    """`n` comparisons, of which the first `gold` are attention checks whose answer a is right.

    In a folder, or in what a file name or a URL names.
    """
    store = Store.open(place / "store.sqlite" if isinstance(place, Path) else place, clock=clock or Clock())
    store.add(item(i, gold="a" if i < gold else None) for i in range(n))
    store.set_overlap(overlap)
    for name in people:
        store.enrol(name)
    return store


def judge_next(store: Store, name: str, verdict: str = "a", *, plan: Plan = ALWAYS, seed: int = 0,
               submission: str | None = None, **opinion: object) -> int | None:
    """The next judgment of somebody: its id, None where nothing is left."""
    given = store.assign(name, random=Random(seed), plan=plan)
    if given is None:
        return None
    said = Opinion(verdict=verdict, **opinion)  # type: ignore[arg-type]
    return store.judge(given.token, said, annotator=name, submission=submission or f"{name}-{given.token}")


def sql(store: Store, statement: str) -> None:
    """What somebody could try with another program."""
    with closing(sqlite3.connect(store.name)) as connection, connection:
        connection.execute(statement)
