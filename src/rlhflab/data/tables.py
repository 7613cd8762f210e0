"""The tables of an annotation store, and how a database is opened. What is done with them is in `store`.

Facts are only appended: `comparisons` and `judgments` refuse changes by triggers that the migrations create. `standing`
is derived from them and from `assignments`, so that the next comparison is found through an index.
"""

import sqlite3
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event

from rlhflab.errors import ConfigError, DataError

WAIT = 30.0
"""Seconds that a writer waits for another one."""

KEPT = 16
"""Connections that stay open between requests."""

metadata = sa.MetaData()

comparisons = sa.Table(
    "comparisons", metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("key", sa.String(64), nullable=False, unique=True),
    sa.Column("prompt_id", sa.Text, nullable=False),
    sa.Column("messages", sa.Text, nullable=False),
    sa.Column("facts", sa.Text, nullable=False),
    sa.Column("a", sa.Text, nullable=False),
    sa.Column("b", sa.Text),
    sa.Column("gold", sa.String(8)),
    sa.Column("meta", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("added_at", sa.String(32), nullable=False),
    sa.Index("ix_comparisons_gold", "id", sqlite_where=sa.text("gold IS NOT NULL"),
             postgresql_where=sa.text("gold IS NOT NULL")))
"""`key` names the content, so that nothing is in a store twice. `b` is null for a single answer. `gold`: the verdict
that a careful annotator gives."""

standing = sa.Table(
    "standing", metadata,
    sa.Column("comparison_id", sa.Integer, sa.ForeignKey("comparisons.id"), primary_key=True, autoincrement=False),
    sa.Column("waiting", sa.Integer, nullable=False),
    sa.Column("conflict", sa.Integer, nullable=False),
    sa.Index("ix_standing_waiting", "comparison_id", sqlite_where=sa.text("waiting > 0"),
             postgresql_where=sa.text("waiting > 0")),
    sa.Index("ix_standing_conflict", "comparison_id", sqlite_where=sa.text("conflict > 0"),
             postgresql_where=sa.text("conflict > 0")))
"""`waiting`: annotators still to be asked. `conflict`: 1 where judgments disagree and nobody has adjudicated."""

annotators = sa.Table(
    "annotators", metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("cursor", sa.Integer, nullable=False),
    sa.Column("enrolled_at", sa.String(32), nullable=False))
"""`cursor`: the last comparison given, from which the search for the next one goes on."""

assignments = sa.Table(
    "assignments", metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("token", sa.String(64), nullable=False, unique=True),
    sa.Column("comparison_id", sa.Integer, sa.ForeignKey("comparisons.id"), nullable=False),
    sa.Column("annotator", sa.String(64), nullable=False),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("shown_first", sa.String(1)),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("given_at", sa.String(32), nullable=False),
    sa.UniqueConstraint("comparison_id", "annotator", "purpose", name="uq_assignments_once"),
    sa.Index("ix_assignments_annotator", "annotator", "purpose", "state", "id"),
    sa.Index("ix_assignments_open", "state", "given_at", sqlite_where=sa.text("state = 'open'"),
             postgresql_where=sa.text("state = 'open'")))
"""Who was asked what, and which answer came first. Nobody is given a comparison twice for one purpose."""

judgments = sa.Table(
    "judgments", metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("submission", sa.String(64), nullable=False, unique=True),
    sa.Column("comparison_id", sa.Integer, sa.ForeignKey("comparisons.id"), nullable=False),
    sa.Column("assignment_id", sa.Integer, sa.ForeignKey("assignments.id"), nullable=False),
    sa.Column("annotator", sa.String(64), nullable=False),
    sa.Column("purpose", sa.String(16), nullable=False),
    sa.Column("verdict", sa.String(8)),
    sa.Column("strength", sa.Float, nullable=False),
    sa.Column("tags", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("shown_first", sa.String(1)),
    sa.Column("seconds", sa.Float),
    sa.Column("at", sa.String(32)),
    sa.Column("corrects", sa.Integer, sa.ForeignKey("judgments.id"), unique=True),
    sa.Column("author", sa.String(64), nullable=False),
    sa.Column("why", sa.Text, nullable=False),
    sa.Column("written_at", sa.String(32), nullable=False),
    sa.Index("ix_judgments_comparison", "comparison_id"),
    sa.Index("ix_judgments_assignment", "assignment_id"),
    sa.Index("ix_judgments_annotator", "annotator", "id"))
"""What was said. `verdict` is null where a correction takes a judgment back; `corrects` names the row that a row
replaces, `author` and `why` say who replaced it and for what reason."""

settings = sa.Table(
    "settings", metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.Text, nullable=False))


def database_url(store: str) -> sa.URL:
    """A store by its file name or its URL. ConfigError for another kind of database."""
    if "://" not in store:
        return sa.URL.create("sqlite", database=store)
    try:
        url = sa.make_url(store)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise ConfigError("the store's URL cannot be read; one looks like postgresql://user@host/database") from error
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise ConfigError(f"{shown(url)}: a store is SQLite or PostgreSQL, found {url.get_backend_name()}")
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


def shown(url: sa.URL) -> str:
    """The store's name for people: a path, or a URL without its password."""
    return url.database or ":memory:" if url.get_backend_name() == "sqlite" else url.render_as_string()


def connect(url: sa.URL) -> sa.Engine:
    """An engine whose writers take turns. ConfigError where the driver is missing."""
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url, connect_args={"timeout": WAIT}, pool_size=KEPT)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        return sa.create_engine(url, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{shown(url)}: PostgreSQL needs a driver that is not installed; run: "
                          "pip install 'mini-rlhf-lab[postgres]'") from error


def _prepare_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # sqlite3 would begin transactions late, after the first read
    for pragma in ("synchronous = FULL", "foreign_keys = ON", "recursive_triggers = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer that began as a reader would fail, not wait, where another one wrote in between.
    options = connection.get_execution_options()
    if options.get("writing", False):
        connection.exec_driver_sql(f"PRAGMA synchronous = {'FULL' if options.get('lasting', True) else 'NORMAL'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writing", False) else "BEGIN")


def migrate(engine: sa.Engine, name: str, *, create: bool) -> None:
    """Bring the tables up to date. DataError for a store of a newer version, and for a database that is none."""
    script = ScriptDirectory.from_config(migrations())
    known, newest = {each.revision for each in script.walk_revisions()}, script.get_current_head()
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
        tables = set(sa.inspect(connection).get_table_names())
    if current is not None and current not in known:
        raise DataError(f"{name}: was written by a newer version (tables {current}; this one knows {newest}); "
                        "nothing was changed, update rlhflab to open it")
    if current is None and tables:
        raise DataError(f"{name}: is a database, but not an annotation store: it holds a table {min(tables)!r}; "
                        "give another file")
    if current is None and not create:
        raise DataError(f"{name}: is empty, no store was made in it")
    if engine.dialect.name == "sqlite":
        _read_while_writing(engine)
    if current == newest:
        return
    with engine.execution_options(writing=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(7305417)"))
        config = migrations()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")  # Does nothing where another process was first.


def _read_while_writing(engine: sa.Engine) -> None:
    """Set what the file itself remembers, so only once it is known to be a store: readers do not wait for a writer."""
    raw = engine.raw_connection()
    try:
        raw.cursor().execute("PRAGMA journal_mode = WAL")
    finally:
        raw.close()


def migrations() -> Config:
    """Where the packaged migrations are."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config
