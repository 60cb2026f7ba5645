"""The registry's SQLite database: connection, pragmas, sessions, backup, migrations."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, create_engine, event, inspect
from sqlalchemy.exc import DatabaseError, IntegrityError
from sqlmodel import Session

from storage.errors import InvalidName, NotFound, RegistryFull, RegistryUnusable, StorageError
from storage.paths import at_home

_BUSY_SECONDS = 20
_HIGHEST = 2**63 - 1
_MIGRATIONS = Path(__file__).parent / "migrations"  # in versions/, each file's name begins with its revision


def wal_is_safe(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Whether this SQLite has the fix for the WAL-reset bug: 3.51.3 or later, or 3.44.6, 3.50.7 of their
    branches.
    """
    fixed: dict[tuple[int, ...], int] = {(3, 44): 6, (3, 50): 7}
    return version >= (3, 51, 3) or version[2] >= fixed.get(version[:2], 1 << 30)


class _Together(threading.local):
    """The session that a thread has joined all its work to."""

    session: Session | None = None


class Database:
    """One SQLite file. Any number of processes may hold one; writers wait for each other."""

    def __init__(self, path: Path) -> None:
        """Open or create `path` and bring its schema up to date, after a backup of what was there."""
        self.path = path
        self._engine = create_engine(
            URL.create("sqlite", database=str(path)), connect_args={"timeout": _BUSY_SECONDS}
        )
        at_home(self._engine.dialect, path.parent)
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", _begin)
        self._writer = self._engine.execution_options(begin="BEGIN IMMEDIATE")
        self._together = _Together()
        self._migrate()
        self._watching = threading.Lock()
        self._watch: sqlite3.Connection | None = None

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session for reading; rows stay usable after it."""
        if self._together.session is not None:
            yield self._together.session
            return
        with self._faults_told(), Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session in one write transaction: committed at the end of the block, rolled back on an error."""
        if (joined := self._together.session) is not None:
            yield joined
            joined.flush()
            return
        with (
            self._faults_told(),
            Session(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def _faults_told(self) -> Iterator[None]:
        """Raise RegistryUnusable for what SQLite says of disks, rights and damage; NotFound and InvalidName
        for numbers and texts that no row can have.
        """
        try:
            yield
        except IntegrityError:
            raise  # what was to be stored is at fault
        except DatabaseError as error:
            raise unusable(self.path, error.orig) from error
        except OverflowError:
            raise NotFound(f"Numbers here go up to {_HIGHEST:,}; nothing has a higher one.") from None
        except UnicodeEncodeError as error:
            raise InvalidName(f"{error.object[:80]!r} holds bytes that are not UTF-8 text.") from None

    @contextmanager
    def together(self) -> Iterator[None]:
        """All that this thread reads and writes in the block is one transaction: afterwards all of it is
        there, or nothing.
        """
        with self.writing() as session:
            self._together.session = session
            try:
                yield
            finally:
                self._together.session = None

    def backup(self, target: Path) -> None:
        """Copy the whole database to `target` with SQLite's own backup, also while it is in use."""
        try:
            with closing(sqlite3.connect(self.path)) as source, closing(sqlite3.connect(target)) as copy:
                source.backup(copy)
        except sqlite3.DatabaseError as error:
            raise unusable(target, error) from error

    def version(self) -> int:
        """A number that is another one after each commit, of whichever process; it costs next to nothing.

        PRAGMA data_version tells a connection of what the others have written, so it needs one of its own.
        """
        with self._watching:
            try:
                if self._watch is None:
                    self._watch = sqlite3.connect(self.path, check_same_thread=False, timeout=_BUSY_SECONDS)
                return int(self._watch.execute("PRAGMA data_version").fetchone()[0])
            except sqlite3.DatabaseError as error:
                raise unusable(self.path, error) from error

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
        with self._watching:
            if self._watch is not None:
                self._watch.close()
                self._watch = None

    def _migrate(self) -> None:
        known = sorted(path.name[:4] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))
        head = known[-1]
        try:
            with self._engine.connect() as connection:
                current = _revision(connection)
        except DatabaseError as error:
            raise unusable(self.path, error.orig) from None
        if current == head:
            return
        if current is not None and current not in known:
            raise StorageError(
                f"{self.path} was written by a newer version of the workbench (schema {current}); "
                "update the workbench."
            )
        if current is not None:
            self.backup(self.path.with_name(f"{self.path.stem}-before-{head}-{int(time.time())}.db"))
        # In one transaction, which another process that opens the same new home waits for.
        with self._faults_told(), self._writer.begin() as connection:
            if _revision(connection) != head:
                _upgrade(connection)


def _revision(connection: Connection) -> str | None:
    """The schema of a registry, as alembic writes it down; none in a new one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return found


def _upgrade(connection: Connection) -> None:
    """Run the migrations that are missing. Alembic is a tenth of what a command imports, seldom needed."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def unusable(path: Path, error: BaseException | None) -> RegistryUnusable:
    """What SQLite says of a disk, of rights or of damage, in a sentence with what to do."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the higher bits say more than is needed here
    if code == sqlite3.SQLITE_FULL:
        return RegistryFull(
            f"There is no space left on the disk for {path}; make room, and do it again. Nothing was changed."
        )
    why = {
        sqlite3.SQLITE_READONLY: "it cannot be written: give yourself the right to, or choose another "
        "folder with --home",
        sqlite3.SQLITE_CANTOPEN: "it cannot be opened: see that its folder is there and yours, and that "
        "there is space on its disk",
        sqlite3.SQLITE_IOERR: "its disk cannot be read or written; look at the disk, and do it again",
        sqlite3.SQLITE_BUSY: f"another program has been writing to it for {_BUSY_SECONDS} seconds; wait for "
        "it to end, and do it again",
    }.get(code, "if it is damaged, put a backup in its place with restore --replace")
    return RegistryUnusable(f"The registry {path} cannot be opened or written ({error}): {why}.")


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
