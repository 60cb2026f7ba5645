"""Conversations have a title, a system turn and figures of their answers"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    with op.batch_alter_table("chat", schema=None) as batch_op:
        batch_op.add_column(sa.Column("title", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("system", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("raw", sa.Boolean(), nullable=False, server_default=sa.text("0")))
        batch_op.add_column(sa.Column("changed", sa.Float(), nullable=False, server_default=sa.text("0")))
    op.execute("UPDATE chat SET changed = created")
    with op.batch_alter_table("chat_message", schema=None) as batch_op:
        batch_op.add_column(sa.Column("adopted", sa.String(), nullable=True))
        batch_op.add_column(sa.Column("details", sa.JSON(), nullable=False, server_default="{}"))
