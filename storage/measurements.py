"""Queries about what runs have measured and said: points, samples and log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, func, update
from sqlmodel import col, select

from storage.database import Database
from storage.tables import LOG, RANKS, LabelTable, Note, Point, Run, Sample


class Measurements:
    """The measurements."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_points(self, points: Iterable[Point], energy: Mapping[int, float] | None = None) -> None:
        """Append measurements, and note what runs have cost so far, in joules."""
        with self._database.writing() as session:
            session.add_all(points)
            for run_id, joules in (energy or {}).items():
                session.execute(update(Run).where(col(Run.id) == run_id).values(energy_joules=joules))

    def points(self, run_id: int, after: int = 0, limit: int | None = None) -> Sequence[Point]:
        """Measurements of a run with ids above `after`, in order."""
        with self._database.reading() as session:
            query = (
                select(Point)
                .where(Point.run_id == run_id, col(Point.id) > after)
                .order_by(col(Point.id))
                .limit(limit)
            )
            return session.exec(query).all()

    def point_values(self, run_id: int, columns: Sequence[str], after: int, limit: int) -> list[list[Any]]:
        """The same as plain values of these columns, which is several times as quick."""
        with self._database.reading() as session:
            chosen = [getattr(Point, name) for name in columns]
            query = (
                select(*chosen)
                .where(Point.run_id == run_id, col(Point.id) > after)
                .order_by(col(Point.id))
                .limit(limit)
            )
            return [list(row) for row in session.execute(query).all()]

    def last_point(self, run_id: int) -> Point | None:
        """The newest training measurement of a run."""
        with self._database.reading() as session:
            query = select(Point).where(Point.run_id == run_id, col(Point.loss).is_not(None))
            return session.exec(query.order_by(col(Point.id).desc()).limit(1)).first()

    def last_points(self, run_ids: Sequence[int]) -> dict[int, Point]:
        """The newest training measurement of each of these runs."""
        with self._database.reading() as session:
            # Looked up from the end of each run: grouping would read all that they have measured.
            newest = (
                select(Point.id)
                .where(Point.run_id == Run.id, col(Point.loss).is_not(None))
                .order_by(col(Point.id).desc())
                .limit(1)
                .correlate(Run)
                .scalar_subquery()
            )
            wanted = select(newest).select_from(Run).where(col(Run.id).in_(list(run_ids)))
            query = select(Point).where(col(Point.id).in_(wanted))
            return {point.run_id: point for point in session.exec(query).all()}

    def last_evaluation(self, run_id: int) -> Point | None:
        """The newest evaluation of a run."""
        with self._database.reading() as session:
            query = select(Point).where(Point.run_id == run_id, col(Point.validation_loss).is_not(None))
            return session.exec(query.order_by(col(Point.id).desc()).limit(1)).first()

    def best_losses(self, run_ids: Sequence[int]) -> dict[int, float]:
        """For each of these runs that has been evaluated its lowest validation loss."""
        with self._database.reading() as session:
            query = select(Point.run_id, func.min(Point.validation_loss)).where(
                col(Point.run_id).in_(list(run_ids)), col(Point.validation_loss).is_not(None)
            )
            return {
                int(run_id): lowest
                for run_id, lowest in session.execute(query.group_by(col(Point.run_id))).all()
            }

    def peak_memory(self, run_id: int) -> int | None:
        """The most memory that a run took in any step; None before the first."""
        with self._database.reading() as session:
            return session.exec(select(func.max(Point.memory_bytes)).where(Point.run_id == run_id)).one()

    def add_sample(self, row: Sample) -> None:
        """Append what a run answered to one of its prompts."""
        with self._database.writing() as session:
            session.add(row)
            session.execute(update(Run).where(col(Run.id) == row.run_id).values(sample_requested=False))

    def samples(self, run_id: int, after: int = 0) -> Sequence[Sample]:
        """What a run answered to its prompts, in order, from behind the id `after` on."""
        with self._database.reading() as session:
            query = (
                select(Sample).where(Sample.run_id == run_id, col(Sample.id) > after).order_by(col(Sample.id))
            )
            return session.exec(query).all()

    def add_label_table(self, row: LabelTable) -> None:
        """Append what an evaluation of a run that classifies has found."""
        with self._database.writing() as session:
            session.add(row)

    def last_label_table(self, run_id: int, step: int | None = None) -> LabelTable | None:
        """The newest of a run, or the newest that is of this step."""
        with self._database.reading() as session:
            query = select(LabelTable).where(LabelTable.run_id == run_id)
            if step is not None:
                query = query.where(LabelTable.step == step)
            return session.exec(query.order_by(col(LabelTable.id).desc()).limit(1)).first()

    def add_note(self, run_id: int, text: str, kind: str = LOG) -> None:
        """Append a line to a run's log."""
        with self._database.writing() as session:
            session.add(Note(run_id=run_id, text=text, kind=kind))

    def notes(self, run_id: int, after: int = 0) -> Sequence[Note]:
        """A run's log from behind the id `after` on."""
        return self._notes(run_id, after, col(Note.kind) != RANKS)

    def _notes(self, run_id: int, after: int, chosen: ColumnElement[bool]) -> Sequence[Note]:
        with self._database.reading() as session:
            query = select(Note).where(Note.run_id == run_id, col(Note.id) > after, chosen)
            return session.exec(query.order_by(col(Note.id))).all()

    def add_ranks(self, run_id: int, step: int, ranks: Mapping[str, int]) -> None:
        """Append the rank of each layer, by module path, after a step."""
        self.add_note(run_id, json.dumps({"step": step, "ranks": ranks}), RANKS)

    def last_ranks(self, run_id: int) -> int | None:
        """The number of the newest record of a run's ranks, which a view compares to see whether there are
        newer ones.
        """
        with self._database.reading() as session:
            about = (Note.run_id == run_id, col(Note.kind) == RANKS)
            return session.exec(select(func.max(Note.id)).where(*about)).one()

    def ranks(self, run_id: int) -> dict[int, dict[str, int]]:
        """The rank of each layer, by step and module path, in order; a step that was done again counts as it
        was last.
        """
        noted = [json.loads(note.text) for note in self._notes(run_id, 0, col(Note.kind) == RANKS)]
        return dict(sorted({one["step"]: one["ranks"] for one in noted}.items()))
