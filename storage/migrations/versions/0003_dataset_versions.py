"""Data sets have versions; a base without a chat template has a chosen one;
the split belongs to the data set
"""

import json

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("dataset", schema=None) as batch_op:
        batch_op.add_column(sa.Column("version", sa.Integer(), nullable=False, server_default="1"))
        batch_op.add_column(sa.Column("rows_digest", sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("mapping", sa.JSON(), nullable=False, server_default="{}"))
        for name in ("validation_rows", "excluded_rows", "faulty_rows", "warnings"):
            batch_op.add_column(sa.Column(name, sa.Integer(), nullable=False, server_default="0"))
    with op.batch_alter_table("run", schema=None) as batch_op:
        batch_op.add_column(sa.Column("dataset_version", sa.Integer(), nullable=False, server_default="1"))
    with op.batch_alter_table("base", schema=None) as batch_op:
        batch_op.add_column(sa.Column("template", sa.String(), nullable=False, server_default=""))
    op.create_table(
        "dataset_version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("dataset_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("parent", sa.Integer(), nullable=True),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("rows_digest", sa.String(), nullable=False),
        sa.Column("change", sa.String(), nullable=False),
        sa.Column("rows", sa.Integer(), nullable=False),
        sa.Column("validation_rows", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("excluded_rows", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("faulty_rows", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("created", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["dataset_id"], ["dataset.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("dataset_id", "number"),
    )
    with op.batch_alter_table("dataset_version", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_dataset_version_dataset_id"), ["dataset_id"], unique=False)
    # A data set of an earlier workbench is its own first version: both digests are that of its rows.
    op.execute("UPDATE dataset SET rows_digest = digest")
    op.execute(
        "INSERT INTO dataset_version (dataset_id, number, digest, rows_digest, change, rows, created) "
        "SELECT id, 1, digest, digest, 'imported', rows, created FROM dataset"
    )
    _drop_validation_share()


def _drop_validation_share() -> None:
    """Runs that still wait were queued with an option that has become the data set's."""
    connection = op.get_bind()
    waiting = sa.text("SELECT id, config FROM run WHERE state IN ('queued', 'preparing', 'running')")
    for run_id, stored in connection.execute(waiting).all():
        config = json.loads(stored)
        config.get("train", {}).pop("validation_share", None)
        connection.execute(
            sa.text("UPDATE run SET config = :config WHERE id = :id"),
            {"config": json.dumps(config), "id": run_id},
        )
