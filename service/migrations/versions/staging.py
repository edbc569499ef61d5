"""The hidden directories in which outputs grow, so that those nobody will go on with are removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "staging"
down_revision = "jobs"


def upgrade() -> None:
    op.create_table(
        "staging",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.String(64), nullable=False),
        sa.Column("output", sa.Text, nullable=False),
        sa.Column("identity", sa.String(64), nullable=False),
    )
    op.create_index("staging_by_job", "staging", ["job_id"])
