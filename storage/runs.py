"""Runs and their states."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import delete, update
from sqlmodel import col, select

from storage.checkpoints import Checkpoints
from storage.database import Database
from storage.errors import InUse
from storage.run_states import note_state, run_in
from storage.tables import (
    ACTIVE_STATES,
    FAILED,
    INTERRUPTED,
    PREPARING,
    QUEUED,
    RUNNING,
    UNDER_WAY,
    Adapter,
    Run,
)


class Runs:
    """The runs, whatever their state."""

    def __init__(self, database: Database, checkpoints: Checkpoints) -> None:
        self._database, self._checkpoints = database, checkpoints

    def of_sweep(self, sweep: str) -> list[Run]:
        """The runs that were started together, oldest first."""
        with self._database.reading() as session:
            return list(session.exec(select(Run).where(Run.sweep == sweep).order_by(col(Run.id))).all())

    def remove(self, run_id: int) -> None:
        """Forget a run that is not under way, with its measurements, log and checkpoints; its adapter stays.

        Raises NotFound, InUse.
        """
        with self._database.writing() as session:
            run = run_in(session, run_id)
            if run.state in UNDER_WAY:
                raise InUse(f"Run {run_id} ({run.name}) is {run.state}; stop or pause it first.")
        self._checkpoints.forget(self._checkpoints.of(run_id))
        with self._database.writing() as session:
            session.execute(update(Adapter).where(col(Adapter.run_id) == run_id).values(run_id=None))
            session.execute(delete(Run).where(col(Run.id) == run_id, col(Run.state).not_in(UNDER_WAY)))

    def set_state(self, run_id: int, state: str, reason: str = "", **values: Any) -> None:
        """Change a run's state, and its log with it."""
        with self._database.writing() as session:
            run = run_in(session, run_id)
            run.state, run.reason = state, reason
            for name, value in values.items():
                setattr(run, name, value)
            if state not in ACTIVE_STATES:
                run.ended = time.time()
            note_state(session, run)

    def begin(self, run_id: int, details: Mapping[str, Any]) -> None:
        """Note what was prepared; the run is running now, unless somebody asked it to pause meanwhile."""
        with self._database.writing() as session:
            run = run_in(session, run_id)
            run.details = {**run.details, **details}
            if run.state == PREPARING:
                run.state = RUNNING
                note_state(session, run)

    def update(self, run_id: int, **values: Any) -> None:
        """Set columns of a run."""
        with self._database.writing() as session:
            session.execute(update(Run).where(col(Run.id) == run_id).values(**values))

    def fail_queued(self, reason: str) -> None:
        """Mark the waiting runs as failed, since there is no engine to take them."""
        self._change_all((QUEUED,), FAILED, reason)

    def interrupt(self, reason: str) -> list[int]:
        """Mark runs that were under way as interrupted, since nothing works on them any more.

        Returns their ids.
        """
        return self._change_all(UNDER_WAY, INTERRUPTED, reason)

    def _change_all(self, states: Iterable[str], state: str, reason: str) -> list[int]:
        with self._database.writing() as session:
            runs = session.exec(select(Run).where(col(Run.state).in_(list(states)))).all()
            for run in runs:
                run.state, run.reason, run.ended = state, reason, time.time()
                note_state(session, run)
            return [run.id or 0 for run in runs]

    def active(self) -> list[Run]:
        """Runs that wait or are under way, oldest first."""
        with self._database.reading() as session:
            return list(
                session.exec(select(Run).where(col(Run.state).in_(ACTIVE_STATES)).order_by(col(Run.id))).all()
            )

    def in_states(self, *states: str) -> list[Run]:
        """Runs in any of these states, oldest first."""
        with self._database.reading() as session:
            return list(
                session.exec(select(Run).where(col(Run.state).in_(states)).order_by(col(Run.id))).all()
            )
