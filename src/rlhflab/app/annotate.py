"""Judging in the browser: what to judge next, judgments, undo, progress, conflicts. The store keeps it all.

Annotators never see which answer is a or b, where an answer comes from, or what others said; only an adjudicator does
see the last.
"""

import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import RedirectResponse, Response

from rlhflab.app.server import Access, Form, Link, Pages, Sent, one
from rlhflab.core.stats import Estimate, mean_interval
from rlhflab.data.judging import Assignment, Opinion, Plan, Said
from rlhflab.data.store import RECENT, Store
from rlhflab.errors import DataError

TAGS: Mapping[str, str] = {
    "confident_wrong": "Sure of itself, but wrong",
    "verbose": "Too long or wordy",
    "ignores_instructions": "Ignores instructions or format",
    "hallucination": "States what it cannot know",
    "metric_gaming": "Made to score, not to help",
}
"""Problems of an answer, as they are stored and as annotators read them."""
STRENGTHS = (("slightly", 1 / 3), ("clearly", 2 / 3), ("much", 1.0))
USUAL_STRENGTH = "clearly"
LONGEST_STAY = 24 * 3600.0
"""Seconds beyond which a time on a page is no measurement."""
CONFLICTS_SHOWN = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Who judges what, and how."""

    store: Store
    annotators: tuple[str, ...]
    adjudicators: tuple[str, ...]
    plan: Plan
    news: Callable[[], str] = lambda: ""
    """One line on answers that are still being written, where there are any."""
    count_every: float = 2.0
    """Seconds for which the number of waiting comparisons is not counted again for a page."""

    @property
    def people(self) -> tuple[str, ...]:
        """Everybody who may look."""
        return tuple(dict.fromkeys((*self.annotators, *self.adjudicators)))


class Answer(NamedTuple):
    """An answer as it is shown."""

    place: str
    """first, second or only."""
    heading: str
    text: str


class View(NamedTuple):
    """What was said of a comparison, as an adjudicator sees it."""

    verdict: str
    tags: tuple[str, ...]
    reason: str


def annotation_app(desk: Desk, access: Access, *, cookie: str = "rlhflab") -> FastAPI:
    """The app. Everybody who may look is enrolled."""
    for person in desk.people:
        desk.store.enrol(person)
    pages = Pages(access, cookie=cookie, name="annotate", assets=("annotate.css", "annotate.js"), menu=menu_of(desk))
    for routes in (_add_judging, _add_progress, _add_conflicts):
        routes(pages, desk)
    return pages.app


def menu_of(desk: Desk) -> Callable[[str], list[Link]]:
    """The pages that a person may open."""
    def menu(person: str) -> list[Link]:
        links = [Link("judge", "/", "Judge"), Link("progress", "/progress", "Progress")]
        return [*links, Link("conflicts", "/conflicts", "Conflicts")] if person in desk.adjudicators else links

    return menu


def _add_judging(pages: Pages, desk: Desk) -> None:
    draw = random.SystemRandom()
    waiting = remembered(desk.store.waiting, desk.count_every)

    @pages.app.get("/")
    def start(request: Request) -> Response:
        person = pages.known(request)
        given, last, done = desk.store.turn(person, random=draw, plan=desk.plan if person in desk.annotators else None)
        common: dict[str, Any] = {
            "person": person, "desk": desk, "last": last, "last_words": last and words(last),
            "done": done, "waiting": waiting(), "news": desk.news()}
        return pages.show("done.html.j2", **common) if given is None else pages.show(
            "judge.html.j2", **common, **shown(given), views=[])

    @pages.app.post("/judge")
    def judge(request: Request, form: Sent) -> Response:
        person = pages.sender(request, form)
        given = desk.store.assignment(one(form, "assignment"))
        if given is None:
            raise DataError("this comparison was not given to you; open the start page for your next one")
        desk.store.judge(given.token, opinion_of(given, form), annotator=person,
                         submission=one(form, "submission")[:64])
        return RedirectResponse("/conflicts" if given.purpose == "adjudicate" else "/", 303)

    @pages.app.post("/undo")
    def undo(request: Request, form: Sent) -> Response:
        person = pages.sender(request, form)
        said = desk.store.last_said(person)
        if said is not None and str(said.id) == one(form, "judgment"):
            desk.store.correct(said.id, None, author=person, why="undone by the annotator")
            if said.purpose == "adjudicate":
                return RedirectResponse(f"/conflicts/{said.comparison_id}", 303)
        return RedirectResponse("/", 303)


def _add_progress(pages: Pages, desk: Desk) -> None:
    @pages.app.get("/progress")
    def progress(request: Request) -> Response:
        person = pages.known(request)
        return pages.show("progress.html.j2", person=person, desk=desk, done=desk.store.done_by(person),
                          waiting=desk.store.waiting(), overlap=desk.store.overlap, recent=RECENT,
                          rates=agreement(desk.store, person))


def _add_conflicts(pages: Pages, desk: Desk) -> None:
    def adjudicator(request: Request) -> str:
        person = pages.known(request)
        if person not in desk.adjudicators:
            raise HTTPException(403, "This page is for adjudicators.")
        return person

    @pages.app.get("/conflicts")
    def conflicts(request: Request, after: int = 0) -> Response:
        person = adjudicator(request)
        found = desk.store.conflicts(limit=CONFLICTS_SHOWN + 1, after=after)
        return pages.show("conflicts.html.j2", person=person, desk=desk, found=found[:CONFLICTS_SHOWN],
                          votes={each.id: votes(each.said) for each in found},
                          more=found[CONFLICTS_SHOWN - 1].id if len(found) > CONFLICTS_SHOWN else None)

    @pages.app.get("/conflicts/{comparison}")
    def conflict(request: Request, comparison: int) -> Response:
        person = adjudicator(request)
        given = desk.store.assign_conflict(person, comparison, random=random.SystemRandom())
        standing = desk.store.standing(comparison)
        if given is None or standing is None:
            raise HTTPException(404, "There is no conflict here, or it was decided meanwhile.")
        return pages.show("judge.html.j2", person=person, desk=desk, last=None, last_words=None, done=None,
                          waiting=None, news="", **shown(given),
                          views=[view(said, given.shown_first) for said in standing.said if said.purpose == "judge"])


def shown(given: Assignment) -> dict[str, Any]:
    """An assignment for the template: the turns, the answers in their drawn order, the choices."""
    item = given.item
    if item.b is None:
        answers = [Answer("only", "The answer", item.a)]
    else:
        first, second = (item.a, item.b) if given.shown_first == "a" else (item.b, item.a)
        answers = [Answer("first", "Answer 1", first), Answer("second", "Answer 2", second)]
    return {"given": given, "turns": item.prompt.messages, "answers": answers, "tags": TAGS, "strengths": STRENGTHS,
            "usual_strength": USUAL_STRENGTH, "submission": secrets.token_hex(16)}


def opinion_of(given: Assignment, form: Form) -> Opinion:
    """What a form says, with places on the page turned into the comparison's own answers."""
    places = _places(given.shown_first)
    verdict = one(form, "verdict")
    strength = dict(STRENGTHS).get(one(form, "strength"), 1.0)
    tags = []
    for tag in form.get("tags", ()):
        place, _, name = tag.partition(":")
        if name not in TAGS or place not in (*places, "only"):
            raise DataError(f"tag {tag[:40]!r}: must be one of {', '.join(TAGS)}, of an answer that is shown")
        tags.append(name if place == "only" else f"{places[place]}:{name}")
    return Opinion(verdict=places.get(verdict, verdict), tags=tuple(tags), reason=one(form, "reason").strip(),
                   strength=strength if verdict in places else 1.0, seconds=_seconds(one(form, "seconds")))


def words(said: Said) -> str:
    """A verdict as the annotator saw it."""
    better = {side: place for place, side in _places(said.shown_first).items()}
    return {"first": "answer 1 is better", "second": "answer 2 is better", "tie": "equally good",
            "both_bad": "both bad", "skip": "skipped", "good": "good", "bad": "bad"}[
        better.get(said.verdict or "", said.verdict or "skip")]


def view(said: Said, shown_first: str | None) -> View:
    """A judgment in the order in which the adjudicator sees the answers."""
    places = {side: place for place, side in _places(shown_first).items()}
    numbers = {"first": "answer 1: ", "second": "answer 2: "}
    verdict = {"first": "answer 1", "second": "answer 2", "both_bad": "both bad"}
    tags = []
    for tag in said.tags:
        side, colon, name = tag.rpartition(":")
        tags.append((numbers.get(places.get(side, ""), "") if colon else "") + TAGS.get(name, name))
    said_of = places.get(said.verdict or "", said.verdict or "")
    return View(verdict.get(said_of, said_of), tuple(tags), said.reason)


def votes(said: Sequence[Said]) -> str:
    """How judgments disagree, without saying which answer is which: `2 : 1, 1 equally good`."""
    given = [each.verdict for each in said if each.purpose == "judge"]
    sides = sorted((given.count(side) for side in ("a", "b")), reverse=True)
    names = {"tie": "equally good", "both_bad": "both bad", "good": "good", "bad": "bad"}
    parts = [f"{sides[0]} : {sides[1]}"] if sides[0] else []
    return ", ".join([*parts, *(f"{given.count(name)} {text}" for name, text in names.items() if name in given)])


def agreement(store: Store, annotator: str) -> dict[str, Estimate | None]:
    """How often an annotator agrees with attention checks, with themselves, and with others; None where never asked."""
    compared = {"attention checks": store.against_gold(annotator),
                "yourself, asked again": store.against_self(annotator),
                "other annotators": store.against_others(annotator)}
    return {name: mean_interval([float(same) for _, same in rows], [comparison for comparison, _ in rows])
            if rows else None for name, rows in compared.items()}


def remembered(count: Callable[[], int], seconds: float) -> Callable[[], int]:
    """`count`, asked again only after so many seconds."""
    value, until = 0, 0.0

    def counted() -> int:
        nonlocal value, until
        if time.monotonic() >= until:
            value, until = count(), time.monotonic() + seconds
        return value

    return counted


def _places(shown_first: str | None) -> dict[str, str]:
    return {} if shown_first is None else {"first": shown_first, "second": "b" if shown_first == "a" else "a"}


def _seconds(given: str) -> float | None:
    """The time on the page as the browser measured it; None where it did not, or where it is no time."""
    try:
        seconds = float(given)
    except ValueError:
        return None
    return round(seconds, 1) if 0 <= seconds <= LONGEST_STAY else None
