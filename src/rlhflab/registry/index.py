"""The ledger as SQL tables, for questions that a ledger answers slowly. Nothing is true because it stands here: the
tables are made from the ledger, and made again whenever it has moved on.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from rlhflab.errors import RegistryError
from rlhflab.registry.records import CHANGES, Entry, canonical
from rlhflab.registry.state import state_of
from rlhflab.registry.store import Registry

FILE = "index.sqlite"


def refresh(registry: Registry, url: str | None = None) -> dict[str, Any]:
    """Bring the index at a database URL (SQLite in the registry where absent) up to the ledger, in one transaction.

    RegistryError where SQLAlchemy or the database is missing.
    """
    try:
        sql: Any = import_module("sqlalchemy")
    except ImportError as error:
        raise RegistryError("an index needs sqlalchemy: pip install 'mini-rlhf-lab[registry]'") from error
    tables = _tables(sql)
    entries = registry.entries()
    where = url or f"sqlite:///{(registry.folder / FILE).resolve()}"
    try:
        engine = sql.create_engine(where)
        with engine.begin() as connection:
            tables["index_head"].metadata.create_all(connection)
            stored = connection.execute(sql.select(tables["index_head"].c.hash)).scalar()
            fresh = stored == entries[-1].hash
            if not fresh:
                _fill(connection, tables, entries)
        engine.dispose()
    except (sql.exc.SQLAlchemyError, ImportError) as error:
        text = str(error).splitlines()[0]
        raise RegistryError(f"{_shown(where)}: the index cannot be written: {text}") from error
    return {"url": _shown(where), "entries": len(entries), "rebuilt": not fresh}


def _tables(sql: Any) -> dict[str, Any]:
    data, text = sql.MetaData(), sql.Text

    def column(name: str, kind: Any = text, **options: Any) -> Any:
        return sql.Column(name, kind, **options)

    return {
        "index_head": sql.Table("index_head", data, column("hash", primary_key=True)),
        "adapters": sql.Table("adapters", data, column("digest", primary_key=True), column("name"), column("base"),
                              column("base_digest"), column("rank", sql.Integer), column("head", sql.Boolean),
                              column("record")),
        "entries": sql.Table("entries", data, column("number", sql.Integer, primary_key=True), column("at"),
                             column("kind"), column("by"), column("adapter", index=True), column("deployment"),
                             column("hash"), column("body")),
        "deployments": sql.Table("deployments", data, column("name", primary_key=True), column("active"))}


def _fill(connection: Any, tables: dict[str, Any], entries: Sequence[Entry]) -> None:
    state = state_of(entries)
    rows: dict[str, list[dict[str, Any]]] = {
        "index_head": [{"hash": entries[-1].hash}],
        "adapters": [{"digest": each.digest, "name": each.name, "base": each.base.name, "base_digest": each.base.digest,
                      "rank": each.rank, "head": each.head, "record": canonical(each.row())}
                     for each in state.adapters.values()],
        "entries": [{"number": each.number, "at": each.at, "kind": each.kind, "by": each.by,
                     "adapter": each.body.get("digest"), "hash": each.hash, "body": canonical(each.body),
                     "deployment": each.body["deployment"] if each.kind in CHANGES else None} for each in entries],
        "deployments": [{"name": name, "active": state.active(name)} for name in state.deployments]}
    for name, table in tables.items():
        connection.execute(table.delete())
        if rows[name]:
            connection.execute(table.insert(), rows[name])


def _shown(url: str) -> str:
    """A URL without the password in it."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
