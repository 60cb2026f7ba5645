"""Which way a base is computed; those that are there were added where only the quick one was"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("base", sa.Column("way", sa.String(), server_default="quick", nullable=False))
