"""Every query of the registry. Methods return plain rows that stay usable after the session."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import delete, func, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, SQLModel, col, select

from storage.adapters import AdapterRows
from storage.blobs import BlobStore
from storage.database import Database
from storage.errors import InUse, NameTaken, NotFound
from storage.measurements import MeasurementRows
from storage.names import clean_name
from storage.runs import RunRows
from storage.tables import (
    ACTIVE_STATES,
    FAILED,
    INTERRUPTED,
    Adapter,
    Base,
    BaseManifest,
    Chat,
    ChatMessage,
    Checkpoint,
    Dataset,
    DatasetVersion,
    Export,
    Job,
    Run,
)

Named = TypeVar("Named", Base, Dataset, Adapter)
Single = TypeVar("Single", Base, Adapter)
Row = TypeVar("Row", bound=SQLModel)
DAY = 24 * 3600.0
_LISTED = 8  # names in a refusal
_WORDS = {Base: "base model", Dataset: "data set", Adapter: "adapter"}


class Registry(RunRows, MeasurementRows, AdapterRows):
    """The rows in the database and the blobs they point to."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self.database, self.blobs = database, blobs

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
            return set(session.exec(_there(select(table.name), table)).all())

    def find(self, table: type[Named], name: str) -> Named:
        """The row called `name`. Raises NotFound, listing some names there are."""
        name = unicodedata.normalize("NFC", name).strip()
        with self.database.reading() as session:
            row = session.exec(_there(select(table), table).where(table.name == name)).one_or_none()
            if row is None:
                there = session.exec(_there(select(table.name), table).order_by(col(table.id).desc())).all()
                more = f" and {len(there) - _LISTED:,} more" if len(there) > _LISTED else ""
                listed = f"There are: {', '.join(there[:_LISTED])}{more}." if there else "There is none yet."
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
            query = _there(select(table), table).order_by(col(table.id).desc())  # type: ignore[attr-defined]
            return [row for row in session.exec(query.limit(limit)).all() if isinstance(row, table)]

    def save(self, row: Row) -> Row:
        """Insert or update any row."""
        with self.database.writing() as session:
            return session.merge(row)

    def remove_base(self, name: str) -> Base:
        """Forget a base model.

        Raises InUse while adapters or waiting runs need it; its files are the caller's.
        """
        row = self.find(Base, name)
        with self.database.writing() as session:
            mine = _there(select(Adapter.name), Adapter).where(Adapter.base_fingerprint == row.fingerprint)
            adapters = session.exec(mine).all()
            copies = session.exec(
                select(Base.id).where(Base.fingerprint == row.fingerprint, Base.id != row.id)
            ).all()
            if adapters and not copies:
                raise InUse(
                    f"{name!r} is needed by {len(adapters)} adapter(s): {', '.join(adapters[:5])}. "
                    "Remove them first; "
                    "without their base they are of no use."
                )
            self._refuse_active(session, Run.base_id == row.id, name)
            session.delete(row)
        return row

    def keep_manifest(self, row: BaseManifest) -> None:
        """Remember what a fingerprint was taken over; the same again changes nothing."""
        with self.database.writing() as session:
            if session.get(BaseManifest, row.fingerprint) is None:
                session.add(row)

    def manifest(self, fingerprint: str) -> BaseManifest | None:
        """What a fingerprint was taken over, if any base here has ever had it."""
        with self.database.reading() as session:
            return session.get(BaseManifest, fingerprint)

    def add_dataset(self, row: Dataset, change: str) -> Dataset:
        """Store a new data set with its first version. Raises NameTaken or InvalidName."""
        row.name = clean_name(row.name, "data set")
        try:
            with self.database.writing() as session:
                session.add(row)
                session.flush()
                session.add(_version_of(row, change, parent=None))
        except IntegrityError:
            raise NameTaken(
                f"The name {row.name!r} is taken by another data set; choose another one."
            ) from None
        return row

    def add_version(self, row: Dataset, change: str) -> Dataset:
        """Store `row` as the newest version of its data set.

        Raises NotFound, or InUse if it was changed meanwhile.
        """
        with self.database.writing() as session:
            newest = session.get(Dataset, row.id or 0)
            if newest is None:
                raise NotFound(f"There is no data set called {row.name[:120]!r} any more.")
            if newest.version != row.version:
                raise InUse(
                    f"{row.name!r} has been changed meanwhile (version {newest.version}); look at it "
                    "and try again."
                )
            changed = session.merge(Dataset(**row.model_dump() | {"version": row.version + 1}))
            session.add(_version_of(changed, change, parent=row.version))
        return changed

    def versions(self, dataset_id: int) -> Sequence[DatasetVersion]:
        """All versions of a data set, newest first."""
        with self.database.reading() as session:
            query = select(DatasetVersion).where(DatasetVersion.dataset_id == dataset_id)
            return session.exec(query.order_by(col(DatasetVersion.number).desc())).all()

    def rows_of(self, version_digest: str) -> str:
        """The digest of the rows that a version is made of. Raises NotFound."""
        with self.database.reading() as session:
            found = session.exec(
                select(DatasetVersion.rows_digest).where(DatasetVersion.digest == version_digest)
            ).first()
            if found is None:
                raise NotFound(f"The data set version {version_digest[:12]}… has been deleted.")
            return found

    def remove_dataset(self, name: str) -> None:
        """Delete a data set, all its versions and their files.

        Raises InUse while a waiting or active run needs it.
        """
        row = self.find(Dataset, name)
        with self.database.writing() as session:
            self._refuse_active(session, Run.dataset_id == row.id, name)
            mine = session.exec(select(DatasetVersion).where(DatasetVersion.dataset_id == row.id)).all()
            digests = {row.digest, row.rows_digest} | {
                one for version in mine for one in (version.digest, version.rows_digest)
            }
            session.execute(delete(DatasetVersion).where(col(DatasetVersion.dataset_id) == row.id))
            session.delete(row)
            others = session.exec(select(DatasetVersion.digest, DatasetVersion.rows_digest)).all()
        for digest in digests - {one for pair in others for one in pair} - {""}:
            self.blobs.remove(digest)

    def _refuse_active(self, session: Session, condition: Any, name: str) -> None:
        run = session.exec(select(Run).where(condition, col(Run.state).in_(ACTIVE_STATES))).first()
        if run is not None:
            raise InUse(f"Run {run.id} ({run.name}) is {run.state} and needs {name!r}; stop it or wait.")

    # Jobs, exports and chats.

    def update_job(self, job_id: int, **values: Any) -> None:
        """Set columns of a job."""
        with self.database.writing() as session:
            session.execute(update(Job).where(col(Job.id) == job_id).values(**values))

    def active_jobs(self) -> list[Job]:
        """Jobs that wait or are under way, oldest first."""
        with self.database.reading() as session:
            return list(
                session.exec(select(Job).where(col(Job.state).in_(ACTIVE_STATES)).order_by(col(Job.id))).all()
            )

    def failed_jobs(self, since: float, limit: int = 3) -> Sequence[Job]:
        """The newest jobs that failed after `since`."""
        with self.database.reading() as session:
            query = select(Job).where(col(Job.state).in_((FAILED, INTERRUPTED)), col(Job.ended) > since)
            return session.exec(query.order_by(col(Job.id).desc()).limit(limit)).all()

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
        self.purge_adapters(time.time() - max(seconds, 0.0))
        return self.blobs.sweep(self.referenced, seconds)

    def exports_of(self, adapter_digest: str) -> Sequence[Export]:
        """What was exported from an adapter, newest first."""
        with self.database.reading() as session:
            query = (
                select(Export).where(Export.adapter_digest == adapter_digest).order_by(col(Export.id).desc())
            )
            return session.exec(query).all()

    def chat_messages(self, chat_id: int) -> Sequence[ChatMessage]:
        """All messages of a conversation, in order."""
        with self.database.reading() as session:
            query = select(ChatMessage).where(ChatMessage.chat_id == chat_id).order_by(col(ChatMessage.id))
            return session.exec(query).all()

    def remove_chat(self, chat_id: int) -> None:
        """Delete a conversation."""
        with self.database.writing() as session:
            session.execute(delete(Chat).where(col(Chat.id) == chat_id))

    def change_count(self) -> str:
        """A short text that changes when anything a page shows may have changed; cheap enough to ask every
        second.
        """
        with self.database.reading() as session:
            tables = (Base, Dataset, DatasetVersion, Run, Checkpoint, Adapter, Job, Export)
            tops = [session.exec(select(func.max(table.id), func.count())).one() for table in tables]
            active = [
                (
                    run.id,
                    run.state,
                    run.stop_requested,
                    run.save_requested,
                    run.sample_requested,
                    run.position,
                    len(run.changes),
                )
                for run in session.exec(select(Run).where(col(Run.state).in_(ACTIVE_STATES))).all()
            ]
            jobs = session.exec(select(Job.id, Job.state).where(col(Job.state).in_(ACTIVE_STATES))).all()
            changed = session.exec(select(func.max(Adapter.changed))).one()
            return repr((tops, active, jobs, changed))


def _there(query: Any, table: type[SQLModel]) -> Any:
    """Without the adapters that are deleted and only wait for somebody to want them back."""
    return query.where(col(Adapter.deleted).is_(None)) if table is Adapter else query


def _version_of(row: Dataset, change: str, parent: int | None) -> DatasetVersion:
    return DatasetVersion(
        dataset_id=row.id or 0,
        number=row.version,
        parent=parent,
        digest=row.digest,
        rows_digest=row.rows_digest,
        change=change,
        rows=row.rows,
        validation_rows=row.validation_rows,
        excluded_rows=row.excluded_rows,
        faulty_rows=row.faulty_rows,
    )
