"""Runs that were started together as a sweep"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.add_column(sa.Column("sweep", sa.String(), nullable=False, server_default=""))
        batch_op.create_index(batch_op.f("ix_run_sweep"), ["sweep"], unique=False)
