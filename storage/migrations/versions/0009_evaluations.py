"""The lowest validation loss of each of many runs is found without reading all that they have measured"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_index(
        "ix_point_evaluations",
        "point",
        ["run_id", "validation_loss"],
        sqlite_where=sa.text("validation_loss IS NOT NULL"),
    )
