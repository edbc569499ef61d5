"""The tables of every version come to the present state, and that is what the code believes it to be."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, make_url

from service.migrations import SchemaTooNew
from service.store import Store
from service.tables import metadata, open_engine

OLD_JOB = (
    "INSERT INTO jobs (id, kind, state, attempt, cancel_requested, created_at, request, request_hash) "
    "VALUES ('merge-old', 'merge', 'queued', 0, false, '2026-01-01 00:00:00', '{\"base\": \"/b\"}', 'x')"
)


def test_migrations_and_tables_agree(database_url: str) -> None:
    engine = open_engine(database_url)
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
    engine.dispose()


def test_a_database_from_before_migrations_goes_on(database_url: str) -> None:
    url = make_url(database_url)
    if url.get_backend_name() == "sqlite":
        assert url.database is not None
        Path(url.database).parent.mkdir()
    else:
        url = url.set(drivername="postgresql+psycopg")
    engine = create_engine(url)
    with engine.begin() as connection:
        script = Path(__file__).with_name(f"tables-0.1.0.{url.get_backend_name()}.sql")
        for statement in script.read_text().split(";\n"):
            if statement:
                connection.exec_driver_sql(statement)
        connection.exec_driver_sql(OLD_JOB)
    engine.dispose()

    store = Store.open(database_url)
    claim = store.claim("one", lease_seconds=10, max_attempts=3)
    assert claim is not None
    assert (claim.job_id, claim.request) == ("merge-old", {"base": "/b"})
    store.cancelled(claim)
    assert store.create("merge", {}).state == "queued"
    store.close()
    test_migrations_and_tables_agree(database_url)


def test_tables_of_a_later_version_are_left_alone(database_url: str) -> None:
    engine = open_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'tomorrow'")
    engine.dispose()
    with pytest.raises(SchemaTooNew, match="tomorrow"):
        Store.open(database_url)
