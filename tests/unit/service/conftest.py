"""A store on SQLite, and on PostgreSQL where its server is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.store import Store
from service.tables import metadata, open_engine

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
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    search = os.pathsep.join([os.environ.get("PATH", ""), *map(str, installed)])
    initdb, pg_ctl = (shutil.which(name, path=search) for name in ("initdb", "pg_ctl"))
    if initdb is None or pg_ctl is None:
        pytest.skip("no PostgreSQL server (initdb, pg_ctl) is installed")
    # Short, because the path of a socket is limited, and in a place that another user may enter.
    directory = Path(tmp_path_factory.getbasetemp().parent.parent) / f"taumerge-pg-{os.getpid()}"
    directory.mkdir()
    user = UNPRIVILEGED_USER if os.geteuid() == 0 else None
    if user is not None:
        os.chown(directory, user, -1)
    data = directory / "data"

    def run(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, user=user, cwd=directory, timeout=60)

    try:
        run(initdb, "-D", str(data), "-U", "taumerge", "--auth=trust", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={directory} -c fsync=off"
        run(pg_ctl, "-D", str(data), "-l", str(directory / "log"), "-w", "-o", options, "start")
        try:
            yield f"postgresql://taumerge@/postgres?host={directory}"
        finally:
            run(pg_ctl, "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'state' / 'jobs.sqlite3'}"
        return
    url: str = request.getfixturevalue("postgresql_url")
    yield url
    engine = open_engine(url)
    metadata.drop_all(engine)
    engine.dispose()


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[Store]:
    engine = open_engine(database_url)
    store = Store(engine, clock)
    yield store
    store.close()
