"""On which way a base is computed, with all that decided it, so that it is not compared again"""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.create_table(
        "decided_way",
        sa.Column("key", sa.String(), nullable=False),
        sa.Column("deciding", sa.JSON(), nullable=False),
        sa.Column("way", sa.JSON(), nullable=False),
        sa.Column("created", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
