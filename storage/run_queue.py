"""The queue: which runs wait, in which order, and who takes them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func
from sqlmodel import Session, col, select

from storage.database import Database
from storage.errors import InUse, NameTaken
from storage.names import clean_name, free_name
from storage.run_states import change_state, note_state, run_in
from storage.tables import (
    ACTIVE_STATES,
    FINISHED,
    PREPARING,
    QUEUED,
    RESUMABLE_STATES,
    Adapter,
    Checkpoint,
    LabelTable,
    Point,
    Run,
    Sample,
)


class RunQueue:
    """Runs that wait for the engine."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, runs: Sequence[Run], *, number_if_taken: bool = False) -> None:
        """Store new runs behind all that wait, all or none. Their names must be free among adapters and runs
        to come.

        Raises NameTaken, unless a name may get a number behind it.
        """
        with self._database.writing() as session:
            active = session.exec(select(Run.name).where(col(Run.state).in_(ACTIVE_STATES))).all()
            taken = {*session.exec(select(Adapter.name)).all(), *active}
            last = _last_position(session)
            for place, run in enumerate(runs, start=1):
                run.name, run.position = clean_name(run.name, "run"), last + place
                if number_if_taken:
                    run.name = free_name(run.name, taken)
                if run.name in taken:
                    raise NameTaken(
                        f"There is an adapter or an active run called {run.name!r} already; choose "
                        "another name."
                    )
                taken.add(run.name)
            session.add_all(runs)
            session.flush()
            for run in runs:
                note_state(session, run)

    def waiting(self) -> list[Run]:
        """The queue, first come first."""
        with self._database.reading() as session:
            return list(
                session.exec(
                    select(Run).where(Run.state == QUEUED).order_by(col(Run.position), col(Run.id))
                ).all()
            )

    def next(self) -> list[Run]:
        """The first of the queue with all that may train together with it: of its sweep, or of its base if
        all allow it.

        Empty if none waits.
        """
        waiting = self.waiting()
        return [run for run in waiting if run is waiting[0] or _may_share(waiting[0], run)]

    def move(self, run_id: int, place: int) -> None:
        """Put a waiting run at a place of the queue, counted from 0.

        Raises NotFound, or InUse if it does not wait.
        """
        with self._database.writing() as session:
            run = run_in(session, run_id)
            if run.state != QUEUED:
                raise InUse(f"Run {run_id} ({run.name}) is {run.state}; only a run that waits can be moved.")
            query = (
                select(Run)
                .where(Run.state == QUEUED, Run.id != run_id)
                .order_by(col(Run.position), col(Run.id))
            )
            order = list(session.exec(query).all())
            order.insert(max(0, place), run)
            for position, one in enumerate(order):
                one.position = position
                session.add(one)

    def claim(self, run_id: int) -> bool:
        """Take a waiting run to work on. False if it was stopped in the meantime."""
        with self._database.writing() as session:
            run = session.get(Run, run_id)
            if run is None or run.state != QUEUED:
                return False
            change_state(session, run, PREPARING)
            run.started = time.time()
            return True

    def put_back(self, run_id: int, reason: str) -> None:
        """Let a run that was taken wait again, at its old place."""
        with self._database.writing() as session:
            run = run_in(session, run_id)
            change_state(session, run, QUEUED, reason)
            run.started = None

    def again(
        self, run_id: int, step: int | None = None, config: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Run:
        """Let a run that was paused, interrupted, stopped or has failed wait for the engine again; twice does
        it once. With `step` it goes on from its checkpoint there, and the later ones are forgotten. config:
        options, by part, that are others from now on.

        What it measured behind that checkpoint is forgotten: it will be measured again. Raises NotFound,
        InUse.
        """
        with self._database.writing() as session:
            run = run_in(session, run_id)
            if run.active:
                return run
            if run.state not in RESUMABLE_STATES:
                raise InUse(
                    f"Run {run_id} ({run.name}) is {run.state}; there is nothing left to do. Extend it, or "
                    "duplicate it to train again."
                )
            if step is not None:
                later = (col(Checkpoint.run_id) == run_id, col(Checkpoint.step) > step)
                session.execute(delete(Checkpoint).where(*later))
            changed = {part: {**run.config.get(part, {}), **own} for part, own in (config or {}).items()}
            run.config = {**run.config, **changed}
            _wait_again(session, run)
            return run

    def extend(self, run_id: int, values: Mapping[str, Any]) -> Run:
        """Let a finished run wait for the engine again, with options that count from the step after its last:
        a change like one that was made while it ran.

        Raises NotFound, InUse if it is not finished.
        """
        with self._database.writing() as session:
            run = run_in(session, run_id)
            if run.state != FINISHED:
                raise InUse(
                    f"Run {run_id} ({run.name}) is {run.state}; only a finished run is extended. Change it, "
                    "and resume it if it does not run."
                )
            done = session.exec(select(func.max(Point.step)).where(Point.run_id == run_id)).one() or 0
            run.changes = [*run.changes, {"values": dict(values), "at": time.time(), "step": done}]
            _wait_again(session, run)
            return run


def _wait_again(session: Session, run: Run) -> None:
    """Put a run behind all that wait. What it measured behind its last checkpoint is measured again."""
    newest = session.exec(select(func.max(Checkpoint.step)).where(Checkpoint.run_id == run.id)).one()
    last = -1 if newest is None else newest
    for table in (Point, Sample, LabelTable):
        session.execute(delete(table).where(col(table.run_id) == run.id, col(table.step) > last))
    change_state(session, run, QUEUED, "")
    run.started, run.ended, run.bytes_needed = None, None, 0
    run.position = _last_position(session) + 1
    run.stop_requested = run.pause_requested = run.save_requested = run.sample_requested = False


def _may_share(first: Run, other: Run) -> bool:
    """Whether two waiting runs may train at once.

    Whether their shapes allow it turns out when they are prepared.
    """
    if other.base_id != first.base_id:
        return False
    return (bool(first.sweep) and other.sweep == first.sweep) or (first.together and other.together)


def _last_position(session: Session) -> float:
    return session.exec(select(func.max(Run.position))).one() or 0.0
