"""Where a test's store lies: in a file, and in PostgreSQL where there is a server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

import postgresql_server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[sa.URL]:
    """A server for all tests of a process."""
    with postgresql_server.server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A file that is not there yet, then a database that is empty."""
    if request.param == "sqlite":
        yield str(tmp_path / "store.sqlite")
        return
    with postgresql_server.database(request.getfixturevalue("postgresql")) as url:
        yield url
