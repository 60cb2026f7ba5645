"""Every query of the registry. Methods return plain rows that stay usable after the session."""

from __future__ import annotations

import time
import unicodedata
from typing import TypeVar

from sqlalchemy import func
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel, col, select

from storage.adapters import Adapters
from storage.ballots import Ballots
from storage.bases import Bases
from storage.blobs import BlobStore
from storage.chats import Chats
from storage.checkpoints import Checkpoints
from storage.database import Database
from storage.datasets import Datasets
from storage.errors import NameTaken, NotFound
from storage.exports import Exports
from storage.jobs import Jobs
from storage.measurements import Measurements
from storage.names import clean_name
from storage.prompt_sets import PromptSets
from storage.rows import there
from storage.run_queue import RunQueue
from storage.run_requests import RunRequests
from storage.runs import Runs
from storage.tables import (
    ACTIVE_STATES,
    Adapter,
    Ballot,
    Base,
    Chat,
    Checkpoint,
    Dataset,
    DatasetVersion,
    Export,
    Job,
    PromptAnswer,
    PromptRun,
    PromptSet,
    Run,
)

Named = TypeVar("Named", Base, Dataset, Adapter)
Single = TypeVar("Single", Base, Adapter)
Row = TypeVar("Row", bound=SQLModel)
DAY = 24 * 3600.0
_LISTED = 8  # names in a refusal
_WORDS = {Base: "base model", Dataset: "data set", Adapter: "adapter"}


class Registry:
    """The rows in the database and the blobs they point to."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self.database, self.blobs = database, blobs
        self.bases, self.datasets = Bases(database), Datasets(database, blobs)
        self.checkpoints, self.measurements = Checkpoints(database, blobs), Measurements(database)
        self.runs = Runs(database, self.checkpoints)
        self.queue, self.requests = RunQueue(database), RunRequests(database)
        self.adapters, self.exports = Adapters(database, blobs), Exports(database)
        self.jobs, self.chats = Jobs(database), Chats(database)
        self.ballots, self.prompt_sets = Ballots(database), PromptSets(database)
        self._counted = (-1, "")  # the database's version, and the change count there

    # Base models, data sets and adapters: rows with unique names.

    def add(self, row: Single) -> Single:
        """Store a base model or an adapter. Raises NameTaken or InvalidName."""
        what = _WORDS[type(row)]
        row.name = clean_name(row.name, what)
        try:
            with self.database.writing() as session:
                session.add(row)
        except IntegrityError:
            raise NameTaken(
                f"The name {row.name!r} is taken by another {what}; choose another one."
            ) from None
        return row

    def require_free(self, table: type[Named], name: str) -> str:
        """The cleaned name, if no row of `table` has it. Raises NameTaken or InvalidName."""
        what, name = _WORDS[table], clean_name(name, _WORDS[table])
        if name in self.names(table):
            raise NameTaken(f"The name {name!r} is taken by another {what}; choose another one.")
        return name

    def names(self, table: type[Named]) -> set[str]:
        """All names in `table`."""
        with self.database.reading() as session:
            return set(session.exec(there(select(table.name), table)).all())

    def find(self, table: type[Named], name: str) -> Named:
        """The row called `name`. Raises NotFound, listing some names there are."""
        name = unicodedata.normalize("NFC", name).strip()
        with self.database.reading() as session:
            row = session.exec(there(select(table), table).where(table.name == name)).one_or_none()
            if row is None:
                known = session.exec(there(select(table.name), table).order_by(col(table.id).desc())).all()
                more = f" and {len(known) - _LISTED:,} more" if len(known) > _LISTED else ""
                listed = f"There are: {', '.join(known[:_LISTED])}{more}." if known else "There is none yet."
                raise NotFound(f"There is no {_WORDS[table]} called {name[:120]!r}. {listed}")
            return row

    def get(self, table: type[Row], row_id: int) -> Row:
        """The row with this id. Raises NotFound."""
        with self.database.reading() as session:
            row = session.get(table, row_id)
            if row is None:
                raise NotFound(f"There is no {table.__name__.lower()} {row_id}.")
            return row

    def all(self, table: type[Row], limit: int | None = None) -> list[Row]:
        """All rows, newest first."""
        with self.database.reading() as session:
            query = there(select(table), table).order_by(col(table.id).desc())  # type: ignore[attr-defined]
            return [row for row in session.exec(query.limit(limit)).all() if isinstance(row, table)]

    def save(self, row: Row) -> Row:
        """Insert or update any row."""
        with self.database.writing() as session:
            return session.merge(row)

    # Jobs, exports and chats.

    def referenced(self) -> set[str]:
        """The digests of all blobs that some row needs; deleted adapters that can be brought back count."""
        columns = (
            Adapter.digest,
            Dataset.digest,
            Dataset.rows_digest,
            DatasetVersion.digest,
            DatasetVersion.rows_digest,
            Checkpoint.adapter_digest,
            Checkpoint.state_digest,
        )
        with self.database.reading() as session:
            return {digest for column in columns for digest in session.exec(select(column)).all()} - {""}

    def sweep(self, seconds: float = DAY) -> int:
        """Remove what was deleted, or put and never registered, more than `seconds` ago. Returns the bytes
        that became free.

        With fewer seconds than it takes another process to register what it has put, that is taken from it.
        """
        self.adapters.purge(time.time() - max(seconds, 0.0))
        return self.blobs.sweep(self.referenced, seconds)

    def change_count(self) -> str:
        """A short text that changes when anything a page shows may have changed; cheap enough to ask every
        second.
        """
        version = self.database.version()
        if version != self._counted[0]:
            self._counted = version, self._count_changes()
        return self._counted[1]

    def _count_changes(self) -> str:
        with self.database.reading() as session:
            tables = (
                *(Base, Dataset, DatasetVersion, Run, Checkpoint, Adapter, Job, Export),
                *(PromptSet, PromptRun, PromptAnswer),
            )
            tops = [session.exec(select(func.max(table.id), func.count())).one() for table in tables]
            active = [
                (
                    run.id,
                    run.state,
                    run.stop_requested,
                    run.save_requested,
                    run.sample_requested,
                    run.position,
                    run.change_requested,
                    len(run.changes),
                )
                for run in session.exec(select(Run).where(col(Run.state).in_(ACTIVE_STATES))).all()
            ]
            states = sorted(session.exec(select(Run.state, func.count()).group_by(Run.state)).all())
            jobs = session.exec(select(Job.id, Job.state).where(col(Job.state).in_(ACTIVE_STATES))).all()
            changed = [
                session.exec(select(func.max(moment))).one()
                for moment in (Adapter.changed, PromptSet.changed, Ballot.voted)
            ]
            talked = session.exec(select(Chat.id).limit(1)).first() is not None  # the last of the first steps
            return repr((tops, states, active, jobs, changed, talked))
