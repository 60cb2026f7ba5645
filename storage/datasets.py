"""Data sets and their versions."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select

from storage.blobs import BlobStore
from storage.database import Database
from storage.errors import InUse, NameTaken, NotFound
from storage.names import clean_name
from storage.rows import refuse_active
from storage.tables import (
    Dataset,
    DatasetVersion,
    Run,
)


class Datasets:
    """The data sets."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database, self._blobs = database, blobs

    def add(self, row: Dataset, change: str) -> Dataset:
        """Store a new data set with its first version. Raises NameTaken or InvalidName."""
        row.name = clean_name(row.name, "data set")
        try:
            with self._database.writing() as session:
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
        with self._database.writing() as session:
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
        with self._database.reading() as session:
            query = select(DatasetVersion).where(DatasetVersion.dataset_id == dataset_id)
            return session.exec(query.order_by(col(DatasetVersion.number).desc())).all()

    def rows_of(self, version_digest: str) -> str:
        """The digest of the rows that a version is made of. Raises NotFound."""
        with self._database.reading() as session:
            found = session.exec(
                select(DatasetVersion.rows_digest).where(DatasetVersion.digest == version_digest)
            ).first()
            if found is None:
                raise NotFound(f"The data set version {version_digest[:12]}… has been deleted.")
            return found

    def remove(self, row: Dataset) -> None:
        """Delete a data set, all its versions and their files.

        Raises InUse while a waiting or active run needs it.
        """
        with self._database.writing() as session:
            refuse_active(session, Run.dataset_id == row.id, row.name)
            mine = session.exec(select(DatasetVersion).where(DatasetVersion.dataset_id == row.id)).all()
            digests = {row.digest, row.rows_digest} | {
                one for version in mine for one in (version.digest, version.rows_digest)
            }
            session.execute(delete(DatasetVersion).where(col(DatasetVersion.dataset_id) == row.id))
            session.delete(row)
            others = session.exec(select(DatasetVersion.digest, DatasetVersion.rows_digest)).all()
        for digest in digests - {one for pair in others for one in pair} - {""}:
            self._blobs.remove(digest)


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
