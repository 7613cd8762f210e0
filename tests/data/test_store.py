"""The annotation store: nothing that was said changes, nobody is asked twice, nothing is lost or doubled."""

import io
import re
import sqlite3
import threading
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import event

import postgresql_server
from annotation_stores import ALWAYS, Clock, item, judge_next, sql, store_with
from rlhflab.data import tables
from rlhflab.data.judging import Opinion, Plan, Told
from rlhflab.data.store import Store
from rlhflab.errors import ConfigError, DataError

WHOLE = re.compile(r"SCAN (comparisons|standing|annotators|assignments|judgments)")


def test_what_is_there_already_is_not_added_again_even_with_its_sides_exchanged(place):
    store = store_with(place, 2)
    assert store.add([item(0), item(1, a="wrong", b="right"), item(2)]) == (1, 2)
    assert store.counts()["comparisons"] == 3


def test_a_failed_import_leaves_nothing(place):
    store = store_with(place, 1)
    with pytest.raises(DataError, match="'p2': its text holds a NUL character"):
        store.add([item(1), item(2, a="\0")])
    assert store.counts()["comparisons"] == 1


@pytest.mark.parametrize("statement", [
    "UPDATE judgments SET verdict = 'b'", "DELETE FROM judgments",
    "INSERT OR REPLACE INTO judgments SELECT * FROM judgments",
    "UPDATE comparisons SET a = 'other'", "DELETE FROM comparisons",
    "INSERT OR REPLACE INTO comparisons SELECT * FROM comparisons"])
def test_no_program_can_change_what_was_said_or_asked(tmp_path, statement):
    store = store_with(tmp_path)
    judge_next(store, "anna")
    before = list(store.everything())
    with pytest.raises(sqlite3.IntegrityError, match="are only appended"):
        sql(store, statement)
    assert list(store.everything()) == before


@pytest.mark.parametrize("statement", [
    "UPDATE judgments SET verdict = 'b'", "DELETE FROM judgments", "TRUNCATE judgments",
    "INSERT INTO judgments SELECT * FROM judgments ON CONFLICT (id) DO UPDATE SET verdict = 'b'",
    "UPDATE comparisons SET a = 'other'", "DELETE FROM comparisons", "TRUNCATE comparisons CASCADE"])
def test_no_program_can_change_what_was_said_or_asked_in_postgresql(postgresql, statement):
    with postgresql_server.database(postgresql) as url:
        store = store_with(url)
        judge_next(store, "anna")
        before = list(store.everything())
        with pytest.raises(sa.exc.DBAPIError, match="are only appended"), store._engine.begin() as connection:
            connection.exec_driver_sql(statement)
        assert list(store.everything()) == before


def test_a_correction_is_a_new_row_that_names_the_old_one_its_author_and_the_reason(place):
    store = store_with(place)
    first = judge_next(store, "anna", "a")
    second = store.correct(first, "b", author="lead", why="answer a is out of date")
    rows = list(store.all_said())
    assert [(r.id, r.verdict, r.corrects, r.author) for r in rows] == [
        (first, "a", None, "anna"), (second, "b", first, "lead")]
    assert rows[1].why == "answer a is out of date" and rows[1].annotator == "anna"
    (said,) = store.standing(1).said
    assert said.id == second and store.last_said("anna") is None, "what the lead wrote is not anna's to undo"


def test_a_correction_needs_a_reason_and_a_row_that_nobody_corrected(place):
    store = store_with(place)
    first = judge_next(store, "anna", "a")
    with pytest.raises(DataError, match="needs a reason"):
        store.correct(first, "b", author="lead", why=" ")
    second = store.correct(first, "b", author="lead", why="slip")
    assert store.correct(first, "b", author="lead", why="slip") == second
    with pytest.raises(DataError, match=f"corrected before, by judgment {second}; correct that one"):
        store.correct(first, "tie", author="lead", why="slip")
    with pytest.raises(DataError, match="there is no judgment 99"):
        store.correct(99, "b", author="lead", why="slip")
    with pytest.raises(DataError, match="'good': must be one of a, b, tie"):
        store.correct(second, "good", author="lead", why="slip")


def test_what_was_taken_back_is_asked_again_in_the_same_order_and_does_not_count(place):
    store = store_with(place)
    given = store.assign("anna", random=Random(3), plan=ALWAYS)
    first = store.judge(given.token, Opinion(verdict="a"), annotator="anna", submission="one")
    store.correct(first, None, author="anna", why="undone")
    assert store.counts()["judgments"] == 0 and store.done_by("anna") == 0
    again = store.assign("anna", random=Random(4), plan=ALWAYS)
    assert (again.token, again.shown_first) == (given.token, given.shown_first)
    store.judge(again.token, Opinion(verdict="b"), annotator="anna", submission="two")
    assert [row.corrects for row in store.all_said()] == [None, 1, 2]
    assert [said.verdict for said in store.standing(1).said] == ["b"]


def test_a_submission_that_is_sent_twice_is_one_judgment(place):
    store = store_with(place)
    given = store.assign("anna", random=Random(0), plan=ALWAYS)
    ids = {store.judge(given.token, Opinion(verdict="a"), annotator="anna", submission="same") for _ in range(3)}
    assert len(ids) == 1 and store.counts()["judgments"] == 1
    with pytest.raises(DataError, match="judged this comparison already"):
        store.judge(given.token, Opinion(verdict="b"), annotator="anna", submission="another")


def test_only_who_was_asked_can_answer(place):
    store = store_with(place)
    given = store.assign("anna", random=Random(0), plan=ALWAYS)
    for token, name in ((given.token, "ben"), ("0" * 32, "anna")):
        with pytest.raises(DataError, match="was not given to you"):
            store.judge(token, Opinion(verdict="a"), annotator=name, submission="x")
    assert store.counts()["judgments"] == 0


@pytest.mark.parametrize(("opinion", "sentence"), [
    (Opinion(verdict="c"), "verdict 'c': must be one of a, b, tie, both_bad, skip"),
    (Opinion(verdict="a", strength=0.0), "strength 0.0: must be above 0 and at most 1"),
    (Opinion(verdict="a", reason="x" * 4001), "text of at most 4000 characters")])
def test_an_opinion_that_cannot_be_is_refused(place, opinion, sentence):
    store = store_with(place)
    given = store.assign("anna", random=Random(0), plan=ALWAYS)
    with pytest.raises(DataError, match=sentence):
        store.judge(given.token, opinion, annotator="anna", submission="x")


def test_each_comparison_goes_to_as_many_annotators_as_the_overlap_says(place):
    store = store_with(place, 2, people=("anna", "ben", "cara"), overlap=2)
    judged = {name: 0 for name in ("anna", "ben", "cara")}
    for name in judged:
        while judge_next(store, name) is not None:
            judged[name] += 1
    assert judged == {"anna": 2, "ben": 2, "cara": 0}
    store.set_overlap(3)
    assert store.waiting() == 2 and judge_next(store, "cara") is not None
    assert judge_next(store, "anna") is None, "nobody is asked the same thing twice"


def test_what_is_open_is_given_again_until_it_is_judged(place):
    store = store_with(place)
    tokens = {store.assign("anna", random=Random(seed), plan=ALWAYS).token for seed in range(3)}
    assert len(tokens) == 1


def test_what_is_skipped_waits_for_somebody_else(place):
    store = store_with(place, 1)
    judge_next(store, "anna", "skip")
    assert store.waiting() == 1 and judge_next(store, "anna") is None
    assert judge_next(store, "ben", "b") is not None and store.waiting() == 0


def test_what_somebody_keeps_too_long_goes_to_another_and_a_late_judgment_still_counts(place):
    clock = Clock()
    store = store_with(place, 1, clock=clock)
    late = store.assign("anna", random=Random(0), plan=ALWAYS)
    assert store.assign("ben", random=Random(0), plan=ALWAYS) is None
    clock.pass_hours(25)
    assert judge_next(store, "ben", "a") is not None
    store.judge(late.token, Opinion(verdict="b"), annotator="anna", submission="late")
    assert {said.annotator for said in store.standing(1).said} == {"anna", "ben"}


def test_which_answer_comes_first_is_drawn_and_kept(place):
    store = store_with(place, 40)
    random, shown = Random(0), []
    for k in range(40):
        given = store.assign("anna", random=random, plan=ALWAYS)
        shown.append(given.shown_first)
        store.judge(given.token, Opinion(verdict="a"), annotator="anna", submission=str(k))
    assert 10 < shown.count("a") < 30
    assert [row.shown_first for row in store.all_said()] == shown


def test_attention_checks_go_to_everybody_and_tell_who_was_right(place):
    store = store_with(place, 6, gold=2)
    for name, verdict in (("anna", "a"), ("ben", "b")):
        for _ in range(2):
            judge_next(store, name, verdict, plan=Plan(gold_every=1))
    assert store.against_gold("anna") == [(1, True), (2, True)]
    assert store.against_gold("ben") == [(1, False), (2, False)]
    assert store.conflicts() == [] and store.waiting() == 4, "checks are nobody's conflict and never wait"


def test_somebody_is_asked_again_only_after_a_while_and_compared_with_themselves(place):
    store = store_with(place, 40)
    plan = Plan(gold_every=0, repeat_every=1)
    for _ in range(20):
        judge_next(store, "anna", "a", plan=plan)
    assert {row.purpose for row in store.all_said()} == {"judge"}
    judge_next(store, "anna", "a", plan=plan)
    judge_next(store, "anna", "b", plan=plan)
    assert store.against_self("anna") == [(1, False)]
    assert [row.purpose for row in store.all_said()].count("repeat") == 1
    assert store.conflicts() == []


def test_annotators_are_compared_where_both_judged(place):
    store = store_with(place, 3, overlap=2)
    for name, verdicts in (("anna", ("a", "b", "skip")), ("ben", ("a", "tie", "a"))):
        for verdict in verdicts:
            judge_next(store, name, verdict)
    assert store.against_others("anna") == store.against_others("ben") == [(1, True), (2, False)]


def test_judgments_that_disagree_wait_for_an_adjudicator_who_decides(place):
    store = store_with(place, 2, overlap=2)
    for name, verdict in (("anna", "a"), ("ben", "b")):
        judge_next(store, name, verdict)
        judge_next(store, name, "tie")
    (conflict,) = store.conflicts()
    assert conflict.id == 1 and [said.verdict for said in conflict.said] == ["a", "b"]
    assert store.assign_conflict("carol", 2, random=Random(0)) is None
    given = store.assign_conflict("carol", 1, random=Random(0))
    assert store.assign_conflict("carol", 1, random=Random(1)).token == given.token
    store.judge(given.token, Opinion(verdict="skip"), annotator="carol", submission="s")
    assert store.assign_conflict("carol", 1, random=Random(1)).token == given.token
    decided = store.judge(given.token, Opinion(verdict="b"), annotator="carol", submission="c")
    assert store.conflicts() == []
    store.correct(decided, None, author="carol", why="undone")
    assert [each.id for each in store.conflicts()] == [1]


def test_single_answers_get_good_or_bad_and_no_order(place):
    store = Store.open(place)
    store.add([item(0, b=None)])
    store.enrol("anna")
    given = store.assign("anna", random=Random(0), plan=ALWAYS)
    assert given.shown_first is None and given.item.verdicts == ("good", "bad", "skip")
    store.judge(given.token, Opinion(verdict="good"), annotator="anna", submission="x")
    assert store.counts()["single_answers"] == 1 and store.standing(1).said[0].verdict == "good"


def test_judgments_made_elsewhere_turn_with_the_sides_of_their_comparison(place):
    store = store_with(place, 1)
    told = Told(item=item(0, a="wrong", b="right"), annotator="dora", purpose="judge", shown_first="a",
                opinion=Opinion(verdict="b", tags=("a:verbose", "other")))
    assert store.add_judgments([told]) == (1, 0) and store.add_judgments([told]) == (0, 1)
    (said,) = store.standing(1).said
    assert (said.verdict, said.shown_first, said.tags, said.at) == ("a", "b", ("b:verbose", "other"), None)
    assert store.waiting() == 0


def test_eight_annotators_at_once_lose_and_double_nothing(place):
    store = store_with(place, 60, people=tuple(f"p{i}" for i in range(8)), overlap=2)
    failures = []

    def work(name):
        try:
            while (given := store.assign(name, random=Random(0), plan=ALWAYS)) is not None:
                for _ in range(2):
                    store.judge(given.token, Opinion(verdict="a"), annotator=name, submission=given.token)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"p{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    said = [each.said for each in store.everything()]
    assert [len(each) for each in said] == [2] * 60
    assert all(len({judgment.annotator for judgment in each}) == 2 for each in said)


def test_two_tabs_of_one_annotator_get_the_same_comparison(place):
    store = store_with(place, 30)
    barrier, tokens = threading.Barrier(6), []

    def open_tab(seed):
        barrier.wait()
        tokens.append(store.assign("anna", random=Random(seed), plan=ALWAYS).token)

    threads = [threading.Thread(target=open_tab, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(tokens) == 6 and len(set(tokens)) == 1


def test_no_statement_of_a_page_or_a_judgment_reads_a_whole_table(tmp_path):
    store = store_with(tmp_path, 50, overlap=2, gold=5)
    judge_next(store, "ben")
    judge_next(store, "anna", plan=Plan(gold_every=1))
    asked = []
    event.listen(store._engine, "before_cursor_execute",
                 lambda c, cursor, statement, parameters, *_: asked.append((statement, parameters)))
    judge_next(store, "anna", plan=Plan(gold_every=1))
    first = judge_next(store, "anna", plan=Plan(gold_every=0, repeat_every=1))
    store.done_by("anna"), store.last_said("anna"), store.conflicts()
    store.correct(first, None, author="anna", why="undone")
    read = [(statement, given) for statement, given in asked if statement.split()[0] in ("SELECT", "UPDATE")]
    assert len(read) > 15
    with store._engine.connect() as connection:
        steps = [step for statement, given in read for *_, step in
                 connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", given)]
    assert [step for step in steps if WHOLE.match(step) and "INDEX ix_" not in step] == []
    for index in ("ix_standing_waiting (comparison_id>?)", "ix_standing_conflict (comparison_id>?)",
                  "ix_comparisons_gold"):
        assert any(index in step for step in steps), index


def test_the_migrations_make_the_tables_that_the_code_knows(place):
    store = store_with(place)
    with store._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []


def test_a_store_that_exists_opens_as_it_was(tmp_path):
    store = store_with(tmp_path)
    judge_next(store, "anna")
    before = list(store.all_said())
    store.close()
    assert list(Store.open(tmp_path / "store.sqlite", create=False).all_said()) == before


def test_a_store_of_a_newer_version_is_left_alone(tmp_path):
    store = store_with(tmp_path)
    sql(store, "UPDATE alembic_version SET version_num = '0999'")
    store.close()
    with pytest.raises(DataError, match=r"written by a newer version \(tables 0999; this one knows 0001\)"):
        Store.open(tmp_path / "store.sqlite")


def test_a_damaged_file_is_one_sentence_and_stays_as_it_is(tmp_path):
    store = store_with(tmp_path, 400)
    store.close()
    path = tmp_path / "store.sqlite"
    whole = bytearray(path.read_bytes())
    whole[8192:24576] = b"\xff" * 16384
    path.write_bytes(whole)
    with pytest.raises(DataError, match=r"store\.sqlite: (is damaged|cannot be used as a store)"):
        Store.open(path)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(("content", "sentence"), [
    (b'{"prompt": "2+2?"}\n' * 100, "cannot be used as a store: file is not a database"),
    (b"", "is empty, no store was made in it"),
    (None, "no such store")])
def test_a_file_that_is_no_store_is_named(tmp_path, content, sentence):
    path: Path = tmp_path / "mine.sqlite"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        Store.open(path, create=False)


def test_another_programs_database_is_not_touched(tmp_path):
    path = tmp_path / "photos.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    before = path.read_bytes()
    with pytest.raises(DataError, match="not an annotation store: it holds a table 'photos'"):
        Store.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("url", "sentence"), [
    ("mysql://host/db", "SQLite or PostgreSQL, found mysql"), ("://", "cannot be read"),
    ("postgresql://anna:secret@host/db", "needs a driver that is not installed")])
def test_what_cannot_be_a_store_is_said_without_its_password(url, sentence, monkeypatch):
    def missing(url, **_):
        raise ModuleNotFoundError("psycopg")

    if url.startswith("postgresql"):
        monkeypatch.setattr(sa, "create_engine", missing)
    with pytest.raises(ConfigError, match=sentence) as error:
        Store.open(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("name", ["", "x" * 65, "anna\nben", "a/b"])
def test_a_name_that_cannot_be_is_refused(place, name):
    with pytest.raises(ConfigError, match="1 to 64 letters, digits"):
        store_with(place, people=(name,))


def test_the_migrations_refuse_changes_in_postgresql_too():
    config, written = tables.migrations(), io.StringIO()
    config.output_buffer, config.attributes["dialect"] = written, "postgresql"
    command.upgrade(config, "head", sql=True)
    for table in ("judgments", "comparisons"):
        assert f"CREATE TRIGGER {table}_no_change BEFORE UPDATE OR DELETE ON {table}" in written.getvalue()
        assert f"CREATE TRIGGER {table}_no_truncate BEFORE TRUNCATE ON {table}" in written.getvalue()
