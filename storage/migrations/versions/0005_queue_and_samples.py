"""Order of the queue, changes while running, samples, energy, kinds of notes"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    with op.batch_alter_table("run", schema=None) as batch_op:
        for name in ("sample_requested", "change_requested", "together"):
            batch_op.add_column(sa.Column(name, sa.Boolean(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("changes", sa.JSON(), nullable=False, server_default="[]"))
        batch_op.add_column(sa.Column("position", sa.Float(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("bytes_needed", sa.Integer(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("energy_joules", sa.Float(), nullable=True))
    op.execute("UPDATE run SET position = id")
    _drop_validation_share()
    with op.batch_alter_table("point", schema=None) as batch_op:
        batch_op.add_column(sa.Column("tokens", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("seconds", sa.Float(), nullable=True))
    with op.batch_alter_table("checkpoint", schema=None) as batch_op:
        batch_op.add_column(sa.Column("train_loss", sa.Float(), nullable=True))
    with op.batch_alter_table("note", schema=None) as batch_op:
        batch_op.add_column(sa.Column("kind", sa.String(), nullable=False, server_default="log"))
    op.create_table(
        "sample",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("prompt", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    with op.batch_alter_table("sample", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_sample_run_id"), ["run_id"], unique=False)


def _drop_validation_share() -> None:
    """Runs that ended before the split became the data set's may be resumed or duplicated now."""
    connection = op.get_bind()
    for run_id, stored in connection.execute(sa.text("SELECT id, config FROM run")).all():
        config = json.loads(stored)
        if config.get("train", {}).pop("validation_share", None) is not None:
            connection.execute(
                sa.text("UPDATE run SET config = :config WHERE id = :id"),
                {"config": json.dumps(config), "id": run_id},
            )
