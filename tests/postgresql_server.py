"""A PostgreSQL server for tests: that of a URL, else one of their own on the loopback. Skips where there is neither.

Set RLHFLAB_TEST_POSTGRESQL to the URL of a server on which databases may be made and dropped.
"""

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

GIVEN = "RLHFLAB_TEST_POSTGRESQL"
OWNER = "postgres"


@contextmanager
def server() -> Iterator[sa.URL]:
    """The URL of a server."""
    pytest.importorskip("psycopg", reason="PostgreSQL's driver is not installed")
    if given := os.environ.get(GIVEN):
        yield sa.make_url(given).set(drivername="postgresql+psycopg")
        return
    programs = found_programs()
    if programs is None:
        pytest.skip(f"no PostgreSQL server is installed, and {GIVEN} names none")
    with own_server(programs) as url:
        yield url


def found_programs() -> Path | None:
    """The folder with initdb and pg_ctl, of the newest version."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    on_path = shutil.which("initdb")
    return folders[-1] if folders else Path(on_path).resolve().parent if on_path else None


@contextmanager
def own_server(programs: Path) -> Iterator[sa.URL]:
    """A server in a folder of its own, which forgets everything; it refuses to run as root."""
    user = OWNER if os.geteuid() == 0 else None
    password, folder = secrets.token_hex(16), Path(tempfile.mkdtemp(prefix="postgresql-"))
    (folder / "password").write_text(password)
    if user:
        for path in (folder, folder / "password"):
            shutil.chown(path, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        # To a file: the server inherits it, and a pipe would stay open as long as the server runs.
        with (folder / "said").open("a") as said:
            subprocess.run([programs / program, "-D", folder / "data", *arguments], check=True, user=user, cwd=folder,
                           stdout=said, stderr=said)

    try:
        run("initdb", "-U", OWNER, "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "-E", "UTF8", "--no-sync")
        run("pg_ctl", "-w", "-o", f"-p {port} -h 127.0.0.1 -k '' -c fsync=off", "start")
        try:
            yield sa.URL.create("postgresql+psycopg", OWNER, password, "127.0.0.1", port, OWNER)
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database(server: sa.URL) -> Iterator[str]:
    """The URL, with its password, of an empty database that is dropped afterwards."""
    name = f"test_{secrets.token_hex(8)}"
    engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
