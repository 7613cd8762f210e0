"""The SQL index is made from the ledger and again when that moved on."""

import sqlite3

import pytest

from registry_folders import promote, registry_of
from rlhflab.errors import RegistryError
from rlhflab.registry.audit import verify
from rlhflab.registry.index import refresh


def test_the_index_follows_the_ledger_and_can_be_lost(tmp_path):
    registry = registry_of(tmp_path, "one", "two")
    path = registry.folder / "index.sqlite"
    assert refresh(registry)["rebuilt"] and not refresh(registry)["rebuilt"]
    promote(registry, "two")
    assert refresh(registry) == {"url": f"sqlite:///{path}", "entries": 4, "rebuilt": True}
    with sqlite3.connect(path) as found:
        active = "select adapters.name from adapters join deployments on active = digest"
        assert found.execute(active).fetchall() == [("two",)]
        assert found.execute("select count(*) from entries where kind = 'add'").fetchone() == (2,)
    path.unlink()
    assert refresh(registry)["rebuilt"] and verify(registry)["ok"]


@pytest.mark.parametrize("url", ["postgresql://anna:secret@127.0.0.1:1/x", "sqlite:////nowhere/x.sqlite", "mine"])
def test_a_database_that_is_not_there_is_one_sentence_without_the_password(tmp_path, url):
    with pytest.raises(RegistryError, match="the index cannot be written") as caught:
        refresh(registry_of(tmp_path, "one"), url)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
