"""Conversations have a title, a system turn and figures of their answers"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    # Not as a batch: that copies the table, and orders several new columns differently from time to time.
    op.add_column("chat", sa.Column("title", sa.String(), nullable=False, server_default=""))
    op.add_column("chat", sa.Column("system", sa.String(), nullable=False, server_default=""))
    op.add_column("chat", sa.Column("raw", sa.Boolean(), nullable=False, server_default=sa.text("0")))
    op.add_column("chat", sa.Column("changed", sa.Float(), nullable=False, server_default=sa.text("0")))
    op.execute("UPDATE chat SET changed = created")
    op.add_column("chat_message", sa.Column("adopted", sa.String(), nullable=True))
    op.add_column("chat_message", sa.Column("details", sa.JSON(), nullable=False, server_default="{}"))
