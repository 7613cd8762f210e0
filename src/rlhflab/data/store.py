"""The annotation store: what is to be judged, who was asked, and what was said. SQLite, or PostgreSQL by its URL.

Judgments are only appended. A correction is a new row that names the row it replaces, its author and the reason; what
counts is the last row of each such chain. How pairs are made of judgments is in `export`, what people see is in `app`.
"""

import json
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Self, TypeVar

import sqlalchemy as sa

from rlhflab.data import queries as q
from rlhflab.data import tables as t
from rlhflab.data.judging import (
    LONGEST_REASON,
    Assignment,
    Counted,
    Item,
    Opinion,
    Plan,
    Purpose,
    Said,
    Side,
    Standing,
    Told,
    Turn,
    check_name,
    check_opinion,
    sides_turned,
)
from rlhflab.data.types import Message, Prompt
from rlhflab.errors import DataError

T = TypeVar("T")
CHUNK = 500
"""Rows read or written at one time."""
REPEAT_AFTER = 20
"""Judgments between one and the same asked again, at least."""
RECENT = 500
"""Shared comparisons, the latest, from which an annotator's agreement with others is taken."""


class Store:
    """One database. Safe to share between threads; several processes may open the same one."""

    def __init__(self, engine: sa.Engine, name: str, clock: Callable[[], datetime]) -> None:
        self._engine, self.name, self._clock = engine, name, clock
        self._writer = engine.execution_options(writing=True)
        self._passing_writer = engine.execution_options(writing=True, lasting=False)
        self._snapshot = engine.execution_options(isolation_level="REPEATABLE READ") \
            if engine.dialect.name == "postgresql" else engine
        # SQLite waits by sleeping and trying again, for seconds where eight threads write; a lock wakes the next one.
        self._turn: AbstractContextManager[Any] = threading.Lock() if engine.dialect.name == "sqlite" else nullcontext()

    @classmethod
    def open(cls, store: str | Path, *, create: bool = True,
             clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Self:
        """The store in a file or behind a URL, with its tables brought up to date.

        DataError for a file that is damaged, none at all, or of a newer version.
        """
        url = t.database_url(str(store))
        name = t.shown(url)
        path = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
        if path is not None and not path.exists() and not (create and path.absolute().parent.is_dir()):
            raise DataError(f"{path}: no such store" + ("; its folder does not exist either" if create else ""))
        opened = cls(t.connect(url), name, clock)
        try:
            with opened._speaking():
                if path is not None:
                    opened._check_pages()
                t.migrate(opened._engine, name, create=create)
        except BaseException:
            opened.close()
            raise
        return opened

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    # -- what is to be judged ------------------------------------------------------------------------------------------

    def add(self, items: Iterable[Item]) -> Counted:
        """Append what is not there yet, all of it or nothing. An item is known by its prompt and its answers."""
        new = known = 0
        with self._transaction(writing=True) as connection:
            overlap = self._overlap(connection)
            for some in _chunks(items):
                by_key = {item.key: item for item in some}
                there = set(connection.scalars(sa.select(t.comparisons.c.key).where(t.comparisons.c.key.in_(by_key))))
                fresh = {key: item for key, item in by_key.items() if key not in there}
                new, known = new + len(fresh), known + len(some) - len(fresh)
                if not fresh:
                    continue
                connection.execute(sa.insert(t.comparisons), [
                    _item_row(key, item, self._now()) for key, item in fresh.items()])
                rows = connection.execute(sa.select(t.comparisons.c.id, t.comparisons.c.gold).where(
                    t.comparisons.c.key.in_(fresh)).order_by(t.comparisons.c.id))
                connection.execute(sa.insert(t.standing), [
                    {"comparison_id": row.id, "waiting": overlap if row.gold is None else 0, "conflict": 0}
                    for row in rows])
        return Counted(new, known)

    def add_judgments(self, told: Iterable[Told]) -> Counted:
        """Append judgments made elsewhere, of items that are in the store.

        Somebody's second judgment of the same thing for the same purpose counts as known.
        """
        new = known = 0
        with self._transaction(writing=True) as connection:
            for each in told:
                there = connection.execute(sa.select(t.comparisons).where(t.comparisons.c.key == each.item.key)).one()
                self._enrol(connection, each.annotator)
                if connection.scalar(q.GIVEN, {"by": each.annotator, "of_comparison": there.id, "why": each.purpose}):
                    known += 1
                    continue
                told_here = each if there.a == each.item.a else sides_turned(each)
                opinion = told_here.opinion
                given = self._give(connection, there.id, each.annotator, each.purpose, told_here.shown_first,
                                   state=_state_after(opinion.verdict))
                self._append(connection, given, opinion, submission=secrets.token_hex(16), at=each.at)
                self._recount(connection, there.id)
                new += 1
        return Counted(new, known)

    @property
    def overlap(self) -> int:
        """How many annotators judge each comparison."""
        with self._transaction() as connection:
            return self._overlap(connection)

    def set_overlap(self, annotators: int) -> None:
        """Let so many annotators judge each comparison, those in the store too."""
        with self._transaction(writing=True) as connection:
            if annotators == self._overlap(connection):
                return
            connection.execute(sa.delete(t.settings).where(t.settings.c.name == "overlap"))
            connection.execute(sa.insert(t.settings).values(name="overlap", value=str(annotators)))
            self._recount_where(connection, sa.true())

    # -- who is asked what ---------------------------------------------------------------------------------------------

    def enrol(self, annotator: str) -> None:
        """Make an annotator known."""
        with self._transaction(writing=True) as connection:
            self._enrol(connection, annotator)

    def turn(self, annotator: str, *, random: Random, plan: Plan | None) -> Turn:
        """An annotator's page: what to judge next, the last judgment, how many are done. No plan: nothing to judge.

        To judge is what is open already, else something new. The annotator must be enrolled.
        """
        with self._transaction() as connection:
            last = connection.execute(q.LAST_SAID, {"by": annotator}).first()
            done = connection.scalar(q.DONE, {"by": annotator}) or 0
            given = None if plan is None else self._assignment(connection, q.OPEN, by=annotator)
        if given is None and plan is not None:
            given = self._assign(annotator, random, plan)
        return Turn(given, None if last is None else _said(last), done)

    def assign(self, annotator: str, *, random: Random, plan: Plan) -> Assignment | None:
        """What the annotator is to judge next; None where nothing is left."""
        return self.turn(annotator, random=random, plan=plan).given

    def _assign(self, annotator: str, random: Random, plan: Plan) -> Assignment | None:
        # What is lost with the power is asked again, so this need not wait for the disk.
        with self._transaction(writing=True, lasting=False) as connection:
            # One at a time for each annotator, so that two tabs get the same comparison.
            cursor = connection.scalar(q.CURSOR, {"by": annotator})
            return self._assignment(connection, q.OPEN, by=annotator) or self._new_assignment(
                connection, annotator, cursor or 0, random, plan)

    def assign_conflict(self, adjudicator: str, comparison: int, *, random: Random) -> Assignment | None:
        """The comparison for its adjudicator; None where its judgments do not disagree, or it is decided."""
        with self._transaction(writing=True) as connection:
            mine = {"of_comparison": comparison, "by": adjudicator, "why": "adjudicate"}
            found = self._assignment(connection, q.BY_PURPOSE, **mine)
            if found is not None and found.state == "open":
                return found
            conflict = connection.scalar(sa.select(t.standing.c.conflict).where(
                t.standing.c.comparison_id == comparison))
            if not conflict:
                return None
            if found is None:
                item = self._item(connection, comparison)
                self._give(connection, comparison, adjudicator, "adjudicate", _drawn_side(item.b, random))
            else:
                self._set_state(connection, found.id, "open")
            return self._assignment(connection, q.BY_PURPOSE, **mine)

    def assignment(self, token: str) -> Assignment | None:
        """The assignment with this token."""
        with self._transaction() as connection:
            return self._assignment(connection, q.BY_TOKEN, secret=token)

    # -- what was said -------------------------------------------------------------------------------------------------

    def judge(self, token: str, opinion: Opinion, *, annotator: str, submission: str) -> int:
        """Append a judgment of an assignment and return its id; the same submission again returns the same id.

        DataError where the assignment is somebody else's or judged already, and for an opinion that cannot be.
        """
        with self._transaction(writing=True) as connection:
            given = self._assignment(connection, q.BY_TOKEN_LOCKED, secret=token)
            if given is None or given.annotator != annotator:
                raise DataError("this comparison was not given to you; open the start page for your next one")
            before = connection.execute(q.SUBMITTED, {"form": submission}).first()
            if before is not None:
                if before.assignment_id != given.id:
                    raise DataError("this form was sent before, with another comparison; open the start page")
                return int(before.id)
            check_opinion(given.item, opinion)
            last = connection.execute(q.STANDS, {"number": given.id}).first()
            if last is not None and last.verdict not in (None, "skip"):
                raise DataError("you have judged this comparison already; undo that judgment to change it")
            row = self._append(connection, given, opinion, submission=submission, at=self._now(),
                               corrects=None if last is None else last.id, author=annotator,
                               why="" if last is None else "judged again")
            self._set_state(connection, given.id, _state_after(opinion.verdict))
            self._recount(connection, given.comparison_id)
            return row

    def correct(self, judgment: int, verdict: str | None, *, author: str, why: str,
                strength: float | None = None) -> int:
        """Append a row that replaces a judgment, or takes it back (verdict None), and return its id.

        The same correction again, by the same author, returns the same id. DataError where somebody corrected it
        otherwise, or where there is no reason.
        """
        if not 0 < len(why.strip()) <= LONGEST_REASON:
            raise DataError(f"a correction needs a reason, of at most {LONGEST_REASON} characters")
        with self._transaction(writing=True) as connection:
            row = connection.execute(sa.select(t.judgments).where(t.judgments.c.id == judgment)).first()
            if row is None:
                raise DataError(f"there is no judgment {judgment} in {self.name}")
            later = connection.execute(sa.select(t.judgments).where(t.judgments.c.corrects == judgment)).first()
            if later is not None:
                if (later.verdict, later.author) == (verdict, author):
                    return int(later.id)
                raise DataError(f"judgment {judgment} was corrected before, by judgment {later.id}; correct that one")
            given = self._assignment(connection, q.BY_ID, number=row.assignment_id)
            assert given is not None
            said = _said(row)
            opinion = Opinion(verdict=verdict or "", strength=said.strength if strength is None else strength,
                              tags=said.tags, reason=said.reason, seconds=said.seconds)
            if verdict is not None:
                check_opinion(given.item, opinion)
            new = self._append(connection, given, opinion, submission=secrets.token_hex(16), at=self._now(),
                               corrects=judgment, author=author, why=why.strip())
            self._set_state(connection, given.id, _state_after(verdict))
            self._recount(connection, given.comparison_id)
            return new

    def last_said(self, annotator: str) -> Said | None:
        """The annotator's latest judgment that stands; what others corrected is theirs."""
        with self._transaction() as connection:
            return next(map(_said, connection.execute(q.LAST_SAID, {"by": annotator})), None)

    def all_said(self, moment: sa.Connection | None = None) -> Iterator[Said]:
        """Every row ever written, corrected ones too, in the order of writing."""
        with self.moment(moment) as connection:
            rows = connection.execute(sa.select(t.judgments).order_by(t.judgments.c.id))
            yield from map(_said, rows.yield_per(CHUNK))

    # -- how it stands -------------------------------------------------------------------------------------------------

    def conflicts(self, *, limit: int = 50, after: int = 0) -> list[Standing]:
        """Comparisons whose judgments disagree and that nobody has decided, by id from `after` on."""
        with self._transaction() as connection:
            ids = list(connection.scalars(sa.select(t.standing.c.comparison_id).where(
                sa.text("conflict > 0"), t.standing.c.comparison_id > after).order_by(
                t.standing.c.comparison_id).limit(limit)))
            return self._standings(connection, ids)

    def everything(self, moment: sa.Connection | None = None) -> Iterator[Standing]:
        """All comparisons and single answers by id, with what counts of what was said."""
        with self.moment(moment) as connection:
            after = 0
            while ids := list(connection.scalars(sa.select(t.comparisons.c.id).where(
                    t.comparisons.c.id > after).order_by(t.comparisons.c.id).limit(CHUNK))):
                yield from self._standings(connection, ids)
                after = ids[-1]

    @contextmanager
    def moment(self, same_as: sa.Connection | None = None) -> Iterator[sa.Connection]:
        """One moment at which all is read, whoever writes meanwhile; another reader's moment where given."""
        if same_as is not None:
            yield same_as
            return
        with self._transaction(snapshot=True) as connection:
            yield connection

    def standing(self, comparison: int) -> Standing | None:
        """One of them; None where there is none."""
        with self._transaction() as connection:
            return next(iter(self._standings(connection, [comparison])), None)

    def done_by(self, annotator: str) -> int:
        """Assignments that the annotator has judged or skipped."""
        with self._transaction() as connection:
            return connection.scalar(q.DONE, {"by": annotator}) or 0

    def counts(self) -> dict[str, Any]:
        """How many there are of everything."""
        c, s = t.comparisons.c, t.standing.c
        standing = q.counting(t.judgments.c.verdict.is_not(None)).subquery()
        with self._transaction(snapshot=True) as connection:
            def count(table: sa.FromClause, *where: Any) -> int:
                return connection.scalar(sa.select(sa.func.count()).select_from(table).where(*where)) or 0

            by = connection.execute(sa.select(standing.c.annotator, sa.func.count()).group_by(
                standing.c.annotator).order_by(standing.c.annotator))
            return {
                "comparisons": count(t.comparisons, c.b.is_not(None)),
                "single_answers": count(t.comparisons, c.b.is_(None)),
                "gold_items": count(t.comparisons, c.gold.is_not(None)),
                "overlap": self._overlap(connection),
                "waiting": count(t.standing, sa.text("waiting > 0")),
                "conflicts": count(t.standing, s.conflict > 0),
                "judgments": count(standing),
                "corrections": count(t.judgments, t.judgments.c.corrects.is_not(None)),
                "by_annotator": {row[0]: row[1] for row in by}}

    def waiting(self) -> int:
        """Comparisons for which somebody is still to be asked."""
        with self._transaction() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(t.standing).where(
                sa.text("waiting > 0"))) or 0

    def against_gold(self, annotator: str) -> list[tuple[int, bool]]:
        """(comparison, right or not) of each attention check that the annotator judged."""
        said = q.counting(t.judgments.c.annotator == annotator, t.judgments.c.purpose == "judge",
                         t.judgments.c.verdict.not_in(("skip",))).subquery()
        with self._transaction() as connection:
            rows = connection.execute(sa.select(said.c.comparison_id, said.c.verdict, t.comparisons.c.gold).join(
                t.comparisons, t.comparisons.c.id == said.c.comparison_id).where(
                t.comparisons.c.gold.is_not(None)).order_by(said.c.comparison_id))
            return [(row[0], row[1] == row[2]) for row in rows]

    def against_self(self, annotator: str) -> list[tuple[int, bool]]:
        """(comparison, same verdict or not) of each comparison that the annotator judged twice."""
        first, again = (q.counting(t.judgments.c.annotator == annotator, t.judgments.c.purpose == purpose,
                                  t.judgments.c.verdict.not_in(("skip",))).subquery()
                        for purpose in ("judge", "repeat"))
        with self._transaction() as connection:
            rows = connection.execute(sa.select(first.c.comparison_id, first.c.verdict, again.c.verdict).join(
                again, again.c.comparison_id == first.c.comparison_id).order_by(first.c.comparison_id))
            return [(row[0], row[1] == row[2]) for row in rows]

    def against_others(self, annotator: str) -> list[tuple[int, bool]]:
        """(comparison, same verdict or not) for each other annotator of the latest shared comparisons; no gold."""
        kept = (t.judgments.c.purpose == "judge", t.judgments.c.verdict.not_in(("skip",)))
        own = q.counting(t.judgments.c.annotator == annotator, *kept).order_by(
            t.judgments.c.id.desc()).limit(RECENT).subquery()
        other = q.counting(t.judgments.c.annotator != annotator, *kept, t.judgments.c.comparison_id.in_(
            sa.select(own.c.comparison_id))).subquery()
        with self._transaction() as connection:
            rows = connection.execute(sa.select(own.c.comparison_id, own.c.verdict, other.c.verdict).join(
                other, other.c.comparison_id == own.c.comparison_id).join(
                t.comparisons, t.comparisons.c.id == own.c.comparison_id).where(
                t.comparisons.c.gold.is_(None)).order_by(own.c.comparison_id, other.c.id))
            return [(row[0], row[1] == row[2]) for row in rows]

    # -- inside a transaction ------------------------------------------------------------------------------------------

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """What the database complains of, as one sentence."""
        try:
            yield
        except sa.exc.DBAPIError as error:
            said = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
            raise DataError(f"{self.name}: cannot be used as a store: {said}; nothing in it was changed by this") \
                from error

    @contextmanager
    def _transaction(self, *, writing: bool = False, snapshot: bool = False,
                     lasting: bool = True) -> Iterator[sa.Connection]:
        """All of it or nothing. `snapshot`: every statement sees the same moment. `lasting`: on the disk at its end."""
        engine = self._snapshot if snapshot else self._engine
        if writing:
            engine = self._writer if lasting else self._passing_writer
        with self._turn if writing else nullcontext(), self._speaking(), engine.begin() as connection:
            yield connection

    def _check_pages(self) -> None:
        with self._engine.connect() as connection:
            found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if found != "ok":
            raise DataError(f"{self.name}: is damaged ({str(found).splitlines()[0]}); copy it, then let "
                            "sqlite3 .recover save what can be read")

    def _now(self) -> str:
        return stamp(self._clock())

    def _overlap(self, connection: sa.Connection) -> int:
        return int(connection.scalar(q.OVERLAP) or 1)

    def _enrol(self, connection: sa.Connection, annotator: str) -> None:
        check_name(annotator)
        if connection.scalar(sa.select(t.annotators.c.name).where(t.annotators.c.name == annotator)) is None:
            connection.execute(sa.insert(t.annotators).values(name=annotator, cursor=0, enrolled_at=self._now()))

    def _new_assignment(self, connection: sa.Connection, annotator: str, cursor: int, random: Random,
                        plan: Plan) -> Assignment | None:
        """A new assignment of the annotator, None where nothing is left."""
        if plan.gold_every and random.random() < 1 / plan.gold_every:
            gold = connection.scalar(q.UNSEEN_GOLD, {"by": annotator})
            if gold is not None:
                return self._give_item(connection, gold, annotator, "judge", random)
        if plan.repeat_every and random.random() < 1 / plan.repeat_every:
            again = self._to_repeat(connection, annotator, random)
            if again is not None:
                return self._give_item(connection, again, annotator, "repeat", random)
        def waiting(after: int) -> int | None:
            found: int | None = connection.scalar(q.WAITING, {"by": annotator, "after": after})
            return found

        found = waiting(cursor) or waiting(0)
        if found is None and self._release(connection, annotator, plan):
            found = waiting(0)
        if found is None:
            return None
        given = self._give_item(connection, found, annotator, "judge", random)
        connection.execute(q.MOVE_CURSOR, {"by": annotator, "place": found})
        self._recount(connection, found)
        return given

    def _to_repeat(self, connection: sa.Connection, annotator: str, random: Random) -> int | None:
        """A comparison that the annotator judged a while ago, from a random place on."""
        own = t.assignments.alias()
        judged = sa.and_(own.c.annotator == annotator, own.c.purpose == "judge", own.c.state == "judged")
        first = connection.scalar(sa.select(own.c.id).where(judged).order_by(own.c.id).limit(1))
        last = connection.scalar(sa.select(own.c.id).where(judged).order_by(own.c.id.desc()).offset(
            REPEAT_AFTER).limit(1))
        if first is None or last is None:
            return None
        no_gold = sa.select(t.comparisons.c.id).where(t.comparisons.c.id == own.c.comparison_id,
                                                      t.comparisons.c.gold.is_(None)).exists()
        return connection.scalar(sa.select(own.c.comparison_id).where(
            judged, own.c.id.between(random.randint(first, last), last), no_gold,
            ~q.given(sa.literal(annotator), own.c.comparison_id, "repeat")).order_by(own.c.id).limit(1))

    def _release(self, connection: sa.Connection, annotator: str, plan: Plan) -> bool:
        """Let others have what somebody has kept for too long; whether there was any."""
        late = stamp(self._clock() - timedelta(hours=plan.lease_hours))
        old = sa.and_(sa.text("state = 'open'"), t.assignments.c.given_at < late, t.assignments.c.purpose == "judge",
                      t.assignments.c.annotator != annotator)
        ids = list(connection.scalars(sa.select(t.assignments.c.comparison_id).where(old).distinct()))
        connection.execute(sa.update(t.assignments).where(old).values(state="released"))
        for some in _chunks(ids):
            self._recount_where(connection, t.standing.c.comparison_id.in_(some))
        return bool(ids)

    def _give_item(self, connection: sa.Connection, comparison: int, annotator: str, purpose: Purpose,
                   random: Random) -> Assignment:
        item = self._item(connection, comparison)
        return self._give(connection, comparison, annotator, purpose, _drawn_side(item.b, random))

    def _give(self, connection: sa.Connection, comparison: int, annotator: str, purpose: Purpose,
              shown_first: str | None, state: str = "open") -> Assignment:
        values = {"token": secrets.token_hex(16), "comparison_id": comparison, "annotator": annotator,
                  "purpose": purpose, "shown_first": shown_first, "state": state, "given_at": self._now()}
        connection.execute(q.GIVE, values)
        found = self._assignment(connection, q.BY_TOKEN, secret=values["token"])
        assert found is not None
        return found

    def _set_state(self, connection: sa.Connection, assignment: int, state: str) -> None:
        connection.execute(q.SET_STATE, {"number": assignment, "becomes": state})

    def _append(self, connection: sa.Connection, given: Assignment, opinion: Opinion, *, submission: str,
                at: str | None, corrects: int | None = None, author: str | None = None, why: str = "") -> int:
        added = connection.execute(q.APPEND, {
            "submission": submission, "comparison_id": given.comparison_id, "assignment_id": given.id,
            "annotator": given.annotator, "purpose": given.purpose, "verdict": opinion.verdict or None,
            "strength": opinion.strength, "tags": json.dumps(list(opinion.tags), ensure_ascii=False),
            "reason": opinion.reason, "shown_first": given.shown_first, "seconds": opinion.seconds, "at": at,
            "corrects": corrects, "author": author or given.annotator, "why": why, "written_at": self._now()})
        assert added.inserted_primary_key is not None
        return int(added.inserted_primary_key[0])

    def _recount(self, connection: sa.Connection, comparison: int) -> None:
        """Derive the standing of one comparison again."""
        self._derive(connection, q.STANDING_LOCKED, q.RECOUNT, of_comparison=comparison)

    def _recount_where(self, connection: sa.Connection, which: sa.ColumnElement[bool]) -> None:
        """Derive the standing of some comparisons again."""
        self._derive(connection, q.standing_locked(which), q.recount(which))

    def _derive(self, connection: sa.Connection, locked: sa.Select[Any], recount: sa.Update, **values: Any) -> None:
        if connection.dialect.name == "postgresql":
            # Whoever waits here counts what was committed meanwhile; the update alone would count before it waits.
            connection.execute(locked, values)
        connection.execute(recount, {"most": self._overlap(connection), **values})

    def _assignment(self, connection: sa.Connection, query: sa.Select[Any], **values: Any) -> Assignment | None:
        row = connection.execute(query, values).first()
        if row is None:
            return None
        return Assignment(id=row.id, token=row.token, comparison_id=row.comparison_id, annotator=row.annotator,
                          purpose=row.purpose, shown_first=row.shown_first, state=row.state, item=_item(row))

    def _item(self, connection: sa.Connection, comparison: int) -> Item:
        return _item(connection.execute(q.ITEM, {"of_comparison": comparison}).one())

    def _standings(self, connection: sa.Connection, ids: Sequence[int]) -> list[Standing]:
        said: dict[int, list[Said]] = {each: [] for each in ids}
        for row in connection.execute(q.counting(t.judgments.c.comparison_id.in_(ids),
                                                t.judgments.c.verdict.is_not(None)).order_by(t.judgments.c.id)):
            said[row.comparison_id].append(_said(row))
        rows = connection.execute(sa.select(t.comparisons).where(t.comparisons.c.id.in_(ids)).order_by(
            t.comparisons.c.id))
        return [Standing(row.id, _item(row), tuple(said[row.id])) for row in rows]


def stamp(moment: datetime) -> str:
    """A moment as text that sorts by time."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _state_after(verdict: str | None) -> str:
    return "open" if verdict is None else "skipped" if verdict == "skip" else "judged"


def _drawn_side(b: str | None, random: Random) -> Side | None:
    return None if b is None else random.choice(("a", "b"))


def _item_row(key: str, item: Item, now: str) -> dict[str, Any]:
    messages = [{"role": m.role, "content": m.content} for m in item.prompt.messages]
    row = {"key": key, "prompt_id": item.prompt.id, "a": item.a, "b": item.b, "gold": item.gold, "source": item.source,
           "messages": json.dumps(messages, ensure_ascii=False), "added_at": now,
           "facts": json.dumps(dict(item.prompt.facts), ensure_ascii=False, sort_keys=True),
           "meta": json.dumps(dict(item.meta), ensure_ascii=False, sort_keys=True)}
    if any("\0" in value for value in row.values() if value):
        raise DataError(f"prompt {item.prompt.id!r}: its text holds a NUL character, which no store can keep")
    return row


def _item(row: Any) -> Item:
    prompt = Prompt(id=row.prompt_id, messages=tuple(Message(**each) for each in json.loads(row.messages)),
                    facts=json.loads(row.facts))
    return Item(prompt=prompt, a=row.a, b=row.b, gold=row.gold, meta=json.loads(row.meta), source=row.source)


def _said(row: Any) -> Said:
    return Said(id=row.id, comparison_id=row.comparison_id, assignment_id=row.assignment_id, annotator=row.annotator,
                purpose=row.purpose, verdict=row.verdict, strength=row.strength, tags=tuple(json.loads(row.tags)),
                reason=row.reason, shown_first=row.shown_first, seconds=row.seconds, at=row.at, corrects=row.corrects,
                author=row.author, why=row.why)


def _chunks(values: Iterable[T]) -> Iterator[list[T]]:
    remaining = iter(values)
    while some := list(islice(remaining, CHUNK)):
        yield some
