"""Migrations of the job store's tables, by Alembic: ``versions`` has one file for each change.

A new one is written by hand, with ``down_revision`` the last, and its name in ``revision``.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from taumerge.errors import TaumergeError

__all__ = ["SchemaTooNew", "migrate"]


class SchemaTooNew(TaumergeError):
    """A later version of taumerge has migrated the tables."""

    code = "schema_too_new"


def migrate(connection: Connection) -> None:
    """Bring the tables to the state of this version, within the transaction of ``connection``.

    Raises:
        SchemaTooNew: they have a state that this version does not know.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise SchemaTooNew(
            f"its tables are those of a later version of taumerge ({error}); install that version"
        ) from error
