"""How the conversations that a run and its adapter learnt were fitted to the chat template"""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    for table in ("run", "adapter"):
        op.add_column(table, sa.Column("chat", sa.JSON(), server_default="{}", nullable=False))
