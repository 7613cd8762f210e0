"""The statements of an annotator's page and of a judgment, built once. The store runs them; no connection here.

Building a statement costs SQLAlchemy ten times what SQLite needs to answer it. Names behind `:` are their parameters.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from rlhflab.data import tables as t

_A, _C, _J, _S = t.assignments.c, t.comparisons.c, t.judgments.c, t.standing.c
_ANNOTATOR = sa.bindparam("by", type_=sa.String)
_COMPARISON = sa.bindparam("of_comparison", type_=sa.Integer)
_OWN = (_A.annotator == _ANNOTATOR, _A.purpose.in_(("judge", "repeat")))


def counting(*where: Any, columns: Sequence[Any] = (t.judgments,)) -> sa.Select[Any]:
    """Judgments that no other row corrects."""
    later = t.judgments.alias()
    return sa.select(*columns).where(*where, ~sa.select(later.c.id).where(later.c.corrects == _J.id).exists())


def given(annotator: sa.ColumnElement[str], comparison: sa.ColumnElement[int],
          purpose: sa.ColumnElement[str] | str) -> sa.Exists:
    """Whether the annotator was given the comparison for a purpose."""
    earlier = t.assignments.alias()
    return sa.select(earlier.c.id).where(earlier.c.comparison_id == comparison, earlier.c.annotator == annotator,
                                         earlier.c.purpose == purpose).exists()


def recount(which: sa.ColumnElement[bool]) -> sa.Update:
    """Bring `standing` up to date where `which` holds. `:most`: how many annotators judge each comparison."""
    here, most = _S.comparison_id, sa.bindparam("most", type_=sa.Integer)
    taken = sa.select(sa.func.count()).select_from(t.assignments).where(
        _A.comparison_id == here, _A.purpose == "judge", _A.state.in_(("open", "judged"))).scalar_subquery()
    is_gold = sa.select(_C.id).where(_C.id == here, _C.gold.is_not(None)).exists()
    said = counting(_J.comparison_id == here, _J.verdict.not_in(("skip",)),
                    columns=(_J.verdict, _J.purpose)).correlate(t.standing).subquery()
    views = sa.select(sa.func.count(sa.distinct(said.c.verdict))).where(said.c.purpose == "judge").scalar_subquery()
    decided = sa.select(said.c.verdict).where(said.c.purpose == "adjudicate").exists()
    return sa.update(t.standing).where(which).values(
        waiting=sa.case((is_gold, 0), (taken < most, most - taken), else_=0),
        conflict=sa.case((is_gold, 0), (decided, 0), (views > 1, 1), else_=0))


def standing_locked(which: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """The same rows, held for this transaction, always in the same order."""
    return sa.select(_S.comparison_id).where(which).order_by(_S.comparison_id).with_for_update()


def _assignment(*where: Any) -> sa.Select[Any]:
    """Assignments, each with the item it is about."""
    of_item = [column for column in t.comparisons.c if column.name not in ("id", "added_at")]
    return sa.select(t.assignments, *of_item).join(t.comparisons, _C.id == _A.comparison_id).where(*where)


OPEN = _assignment(*_OWN, _A.state == "open").order_by(_A.id).limit(1)
"""The assignment that :by has not answered yet."""
BY_ID = _assignment(_A.id == sa.bindparam("number"))
BY_TOKEN = _assignment(_A.token == sa.bindparam("secret"))
BY_TOKEN_LOCKED = BY_TOKEN.with_for_update(of=t.assignments)
BY_PURPOSE = _assignment(_A.comparison_id == _COMPARISON, _A.annotator == _ANNOTATOR,
                         _A.purpose == sa.bindparam("why"))

ITEM = sa.select(t.comparisons).where(_C.id == _COMPARISON)
CURSOR = sa.select(t.annotators.c.cursor).where(t.annotators.c.name == _ANNOTATOR).with_for_update()
MOVE_CURSOR = sa.update(t.annotators).where(t.annotators.c.name == _ANNOTATOR).values(cursor=sa.bindparam("place"))
OVERLAP = sa.select(t.settings.c.value).where(t.settings.c.name == "overlap")
GIVEN = sa.select(given(_ANNOTATOR, _COMPARISON, sa.bindparam("why")))
WAITING = sa.select(_S.comparison_id).where(
    sa.text("waiting > 0"), _S.comparison_id > sa.bindparam("after"),
    ~given(_ANNOTATOR, _S.comparison_id, "judge")).order_by(_S.comparison_id).limit(1).with_for_update(skip_locked=True)
"""The first waiting comparison :after a place that :by was never given. Goes through a partial index."""
UNSEEN_GOLD = sa.select(_C.id).where(_C.gold.is_not(None), ~given(_ANNOTATOR, _C.id, "judge")).order_by(_C.id).limit(1)
SET_STATE = sa.update(t.assignments).where(_A.id == sa.bindparam("number")).values(state=sa.bindparam("becomes"))
GIVE = sa.insert(t.assignments)

SUBMITTED = sa.select(_J.id, _J.assignment_id).where(_J.submission == sa.bindparam("form"))
STANDS = counting(_J.assignment_id == sa.bindparam("number"))
"""What counts of an assignment."""
APPEND = sa.insert(t.judgments)
LAST_SAID = counting(_J.annotator == _ANNOTATOR, _J.author == _ANNOTATOR, _J.verdict.is_not(None)).order_by(
    _J.id.desc()).limit(1)
DONE = sa.select(sa.func.count()).select_from(t.assignments).where(*_OWN, _A.state.in_(("judged", "skipped")))
RECOUNT = recount(_S.comparison_id == _COMPARISON)
STANDING_LOCKED = standing_locked(_S.comparison_id == _COMPARISON)
