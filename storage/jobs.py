"""Jobs: work that is neither training nor chat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import update
from sqlmodel import col, select

from storage.database import Database
from storage.tables import (
    ACTIVE_STATES,
    FAILED,
    INTERRUPTED,
    Job,
)


class Jobs:
    """The jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def update(self, job_id: int, **values: Any) -> None:
        """Set columns of a job."""
        with self._database.writing() as session:
            session.execute(update(Job).where(col(Job.id) == job_id).values(**values))

    def active(self) -> list[Job]:
        """Jobs that wait or are under way, oldest first."""
        with self._database.reading() as session:
            return list(
                session.exec(select(Job).where(col(Job.state).in_(ACTIVE_STATES)).order_by(col(Job.id))).all()
            )

    def failed(self, since: float, limit: int = 3) -> Sequence[Job]:
        """The newest jobs that failed after `since`."""
        with self._database.reading() as session:
            query = select(Job).where(col(Job.state).in_((FAILED, INTERRUPTED)), col(Job.ended) > since)
            return session.exec(query.order_by(col(Job.id).desc()).limit(limit)).all()
