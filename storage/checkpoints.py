"""Checkpoints: states that a run can go on from, and which of them are kept."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, update
from sqlmodel import col, select

from storage.blobs import BlobStore
from storage.database import Database
from storage.tables import (
    Adapter,
    Checkpoint,
    Run,
)


class Checkpoints:
    """The checkpoints of all runs."""

    def __init__(self, database: Database, blobs: BlobStore) -> None:
        self._database, self._blobs = database, blobs

    def add(self, row: Checkpoint) -> None:
        """Store a checkpoint, then forget those that are neither among the last two nor the best by
        validation.
        """
        with self._database.writing() as session:
            session.add(row)
            session.execute(update(Run).where(col(Run.id) == row.run_id).values(save_requested=False))
        kept = self.of(row.run_id)
        best = best_checkpoint(kept)
        self.forget([one for one in kept[2:] if best is None or one.id != best.id])

    def forget(self, rows: Sequence[Checkpoint]) -> None:
        """Delete checkpoints, and their files where no other row needs them."""
        with self._database.writing() as session:
            session.execute(delete(Checkpoint).where(col(Checkpoint.id).in_([row.id for row in rows])))
            needed = set(session.exec(select(Adapter.digest)).all())
            for pair in session.exec(select(Checkpoint.adapter_digest, Checkpoint.state_digest)).all():
                needed |= set(pair)
        for digest in {one for row in rows for one in (row.adapter_digest, row.state_digest)} - needed:
            self._blobs.remove(digest)

    def of(self, run_id: int) -> Sequence[Checkpoint]:
        """A run's checkpoints, newest first."""
        with self._database.reading() as session:
            query = select(Checkpoint).where(Checkpoint.run_id == run_id)
            return session.exec(query.order_by(col(Checkpoint.step).desc(), col(Checkpoint.id).desc())).all()

    def all(self) -> Sequence[Checkpoint]:
        """Those of all runs, newest first."""
        with self._database.reading() as session:
            return session.exec(select(Checkpoint).order_by(col(Checkpoint.id).desc())).all()


def best_checkpoint(rows: Sequence[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest validation loss, the earlier of two; None if none was judged."""
    judged = [one for one in rows if one.validation_loss is not None]
    return min(judged, key=lambda one: (one.validation_loss, one.step), default=None)
