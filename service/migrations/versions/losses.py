"""How many attempts of a job were lost: those that ended with an orderly stop of the service do not count."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "losses"
down_revision = "staging"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("losses", sa.Integer, nullable=False, server_default="0"))
