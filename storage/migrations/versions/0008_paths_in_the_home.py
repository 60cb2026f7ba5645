"""Paths in the home folder are relative to it: a home that was moved or copied finds its own files"""

import json
import re
from pathlib import Path

import sqlalchemy as sa
from alembic import op

from storage.paths import inside_out, relative

revision = "0008"
down_revision = "0007"
_OURS = re.compile(r"adapter-\d+-\d{8}-\d{6}-")  # the names that exports get by themselves


def upgrade() -> None:
    connection = op.get_bind()
    homes = _homes(connection)
    for table in ("base", "export"):
        for row_id, folder in connection.execute(sa.text(f"SELECT id, folder FROM {table}")).all():
            inside = next((found for home in homes if (found := relative(folder, home))), None)
            if inside is not None:
                _set(connection, table, "folder", row_id, inside)
    for column in ("arguments", "result"):
        for row_id, stored in connection.execute(sa.text(f"SELECT id, {column} FROM job")).all():
            before = after = json.loads(stored)
            for home in homes:
                after = inside_out(after, home)
            if after != before:
                _set(connection, "job", column, row_id, json.dumps(after))
    named = "SELECT id, origin, merged FROM base WHERE source = 'merged'"
    for row_id, origin, merged in connection.execute(sa.text(named)).all():
        if any(relative(origin, home) for home in homes):
            _set(connection, "base", "origin", row_id, json.loads(merged).get("adapter_name", ""))


def _homes(connection: sa.Connection) -> list[Path]:
    """This home folder, and where it was before it was moved: there its models and exports were recorded."""
    here = Path(connection.engine.url.database or "").absolute().parent
    owned = connection.execute(sa.text("SELECT folder FROM base WHERE owned")).scalars()
    exported = connection.execute(sa.text("SELECT folder FROM export")).scalars()
    ours = [path for one in owned if (path := Path(one)).parent.name == "models"]
    ours += [
        path for one in exported if (path := Path(one)).parent.name == "exports" and _OURS.match(path.name)
    ]
    there = [path.parent.parent for path in ours if (here / path.parent.name / path.name).is_dir()]
    return list(dict.fromkeys([here, *there]))


def _set(connection: sa.Connection, table: str, column: str, row_id: int, value: str) -> None:
    changed = sa.text(f"UPDATE {table} SET {column} = :value WHERE id = :id")
    connection.execute(changed, {"value": value, "id": row_id})
