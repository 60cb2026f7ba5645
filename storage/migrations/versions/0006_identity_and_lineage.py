"""What a fingerprint was taken over, lineage, tags and stars, deleting with undo, formats of exports"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "base_manifest",
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("tensors", sa.JSON(), nullable=False),
        sa.Column("architecture", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("fingerprint"),
    )
    with op.batch_alter_table("base", schema=None) as batch_op:
        for name in ("merged", "files"):
            batch_op.add_column(sa.Column(name, sa.JSON(), nullable=False, server_default="{}"))
    with op.batch_alter_table("adapter", schema=None) as batch_op:
        for name in ("tokenizer_hash", "template_hash", "tags", "note"):
            batch_op.add_column(sa.Column(name, sa.String(), nullable=False, server_default=""))
        batch_op.add_column(sa.Column("parents", sa.JSON(), nullable=False, server_default="[]"))
        batch_op.add_column(sa.Column("starred", sa.Boolean(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("changed", sa.Float(), nullable=False, server_default="0"))
        batch_op.add_column(sa.Column("deleted", sa.Float(), nullable=True))
        batch_op.create_index(batch_op.f("ix_adapter_deleted"), ["deleted"], unique=False)
    with op.batch_alter_table("export", schema=None) as batch_op:
        batch_op.add_column(sa.Column("format", sa.String(), nullable=False, server_default="safetensors"))
        batch_op.add_column(sa.Column("verdict", sa.String(), nullable=False, server_default="passed"))
        batch_op.add_column(sa.Column("files", sa.JSON(), nullable=False, server_default="{}"))
    op.execute("UPDATE export SET verdict = 'failed' WHERE NOT passed")
