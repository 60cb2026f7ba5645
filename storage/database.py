"""The registry's SQLite database: connection, pragmas, sessions, backup, migrations."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, create_engine, event
from sqlalchemy.exc import DatabaseError
from sqlmodel import Session

from storage.errors import StorageError

_BUSY_SECONDS = 20
_MIGRATIONS = Path(__file__).parent / "migrations"


def wal_is_safe(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Whether this SQLite has the fix for the WAL-reset bug: 3.51.3 or later, or 3.44.6, 3.50.7 of their
    branches.
    """
    fixed: dict[tuple[int, ...], int] = {(3, 44): 6, (3, 50): 7}
    return version >= (3, 51, 3) or version[2] >= fixed.get(version[:2], 1 << 30)


class Database:
    """One SQLite file. Any number of processes may hold one; writers wait for each other."""

    def __init__(self, path: Path) -> None:
        """Open or create `path` and bring its schema up to date, after a backup of what was there."""
        self.path = path
        self._engine = create_engine(
            URL.create("sqlite", database=str(path)), connect_args={"timeout": _BUSY_SECONDS}
        )
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", _begin)
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        self._migrate()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for reading; rows stay usable after it."""
        with Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session in one write transaction: committed at the end of the block, rolled back on an error."""
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def backup(self, target: Path) -> None:
        """Copy the whole database to `target` with SQLite's own backup, also while it is in use."""
        with sqlite3.connect(self.path) as source, sqlite3.connect(target) as copy:
            source.backup(copy)
        source.close()
        copy.close()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _migrate(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
        head = ScriptDirectory.from_config(config).get_current_head()
        try:
            with self._engine.connect() as connection:
                current = MigrationContext.configure(connection).get_current_revision()
        except DatabaseError as error:
            raise StorageError(
                f"The registry {self.path} cannot be opened ({error.orig}). If it is damaged, put a "
                "backup of it in its place."
            ) from None
        if current == head:
            return
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if current is not None and current not in known:
            raise StorageError(
                f"{self.path} was written by a newer version of the workbench (schema {current}); "
                "update the workbench."
            )
        if current is not None:
            self.backup(self.path.with_name(f"{self.path.stem}-before-{head}-{int(time.time())}.db"))
        with self._writer.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _configure(connection: sqlite3.Connection, record: object) -> None:
    """Pragmas of each connection. Transactions are begun by us, so the driver must not begin its own."""
    connection.isolation_level = None
    if wal_is_safe():
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
    else:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute("PRAGMA synchronous=EXTRA")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin(connection: Connection) -> None:
    """Writers take the write lock at once: a reader that turns writer halfway could not wait for another."""
    connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))
