"""Queries about runs: the queue, their states, what is asked of them, their checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, update
from sqlmodel import Session, col, select

from storage.blobs import BlobStore
from storage.database import Database
from storage.errors import InUse, NameTaken, NotFound
from storage.names import clean_name, free_name
from storage.tables import (
    ACTIVE_STATES,
    FAILED,
    FINISHED,
    INTERRUPTED,
    PAUSED,
    PAUSING,
    PREPARING,
    QUEUED,
    RESUMABLE_STATES,
    RUNNING,
    STATE,
    STOPPED,
    UNDER_WAY,
    Adapter,
    Checkpoint,
    Note,
    Point,
    Run,
    Sample,
)


class RunRows:
    """The part of the registry that is about runs."""

    database: Database
    blobs: BlobStore

    # The queue.

    def queue_runs(self, runs: Sequence[Run], *, number_if_taken: bool = False) -> None:
        """Store new runs behind all that wait, all or none. Their names must be free among adapters and runs
        to come.

        Raises NameTaken, unless a name may get a number behind it.
        """
        with self.database.writing() as session:
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
                _note_state(session, run)

    def waiting_runs(self) -> list[Run]:
        """The queue, first come first."""
        with self.database.reading() as session:
            return list(
                session.exec(
                    select(Run).where(Run.state == QUEUED).order_by(col(Run.position), col(Run.id))
                ).all()
            )

    def next_queued(self) -> list[Run]:
        """The first of the queue with all that may train together with it: of its sweep, or of its base if
        all allow it.

        Empty if none waits.
        """
        waiting = self.waiting_runs()
        return [run for run in waiting if run is waiting[0] or _may_share(waiting[0], run)]

    def sweep_runs(self, sweep: str) -> list[Run]:
        """The runs that were started together, oldest first."""
        with self.database.reading() as session:
            return list(session.exec(select(Run).where(Run.sweep == sweep).order_by(col(Run.id))).all())

    def move_run(self, run_id: int, place: int) -> None:
        """Put a waiting run at a place of the queue, counted from 0.

        Raises NotFound, or InUse if it does not wait.
        """
        with self.database.writing() as session:
            run = _run_in(session, run_id)
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

    def remove_run(self, run_id: int) -> None:
        """Forget a run that is not under way, with its measurements, log and checkpoints; its adapter stays.

        Raises NotFound, InUse.
        """
        with self.database.writing() as session:
            run = _run_in(session, run_id)
            if run.state in UNDER_WAY:
                raise InUse(f"Run {run_id} ({run.name}) is {run.state}; stop or pause it first.")
        self._forget(self.checkpoints(run_id))
        with self.database.writing() as session:
            session.execute(update(Adapter).where(col(Adapter.run_id) == run_id).values(run_id=None))
            session.execute(delete(Run).where(col(Run.id) == run_id, col(Run.state).not_in(UNDER_WAY)))

    def claim_run(self, run_id: int) -> bool:
        """Take a waiting run to work on. False if it was stopped in the meantime."""
        with self.database.writing() as session:
            run = session.get(Run, run_id)
            if run is None or run.state != QUEUED:
                return False
            run.state, run.started = PREPARING, time.time()
            _note_state(session, run)
            return True

    def put_back(self, run_id: int, reason: str) -> None:
        """Let a run that was taken wait again, at its old place."""
        self.set_state(run_id, QUEUED, reason, started=None)

    def queue_again(self, run_id: int) -> Run:
        """Let a run that was paused, interrupted, stopped or has failed wait for the engine again; twice does
        it once.

        What it measured behind its last checkpoint is forgotten: it will be measured again. Raises NotFound,
        InUse.
        """
        with self.database.writing() as session:
            run = _run_in(session, run_id)
            if run.active:
                return run
            if run.state not in RESUMABLE_STATES:
                raise InUse(
                    f"Run {run_id} ({run.name}) is {run.state}; there is nothing left to do. Duplicate "
                    "it to train again."
                )
            newest = session.exec(select(func.max(Checkpoint.step)).where(Checkpoint.run_id == run_id)).one()
            last = -1 if newest is None else newest
            for table in (Point, Sample):
                session.execute(delete(table).where(col(table.run_id) == run_id, col(table.step) > last))
            run.state, run.reason, run.started, run.ended, run.bytes_needed = QUEUED, "", None, None, 0
            run.position = _last_position(session) + 1
            run.stop_requested = run.pause_requested = run.save_requested = run.sample_requested = False
            _note_state(session, run)
            return run

    # States.

    def set_state(self, run_id: int, state: str, reason: str = "", **values: Any) -> None:
        """Change a run's state, and its log with it."""
        with self.database.writing() as session:
            run = _run_in(session, run_id)
            run.state, run.reason = state, reason
            for name, value in values.items():
                setattr(run, name, value)
            if state not in ACTIVE_STATES:
                run.ended = time.time()
            _note_state(session, run)

    def begin_run(self, run_id: int, details: Mapping[str, Any]) -> None:
        """Note what was prepared; the run is running now, unless somebody asked it to pause meanwhile."""
        with self.database.writing() as session:
            run = _run_in(session, run_id)
            run.details = {**run.details, **details}
            if run.state == PREPARING:
                run.state = RUNNING
                _note_state(session, run)

    def update_run(self, run_id: int, **values: Any) -> None:
        """Set columns of a run."""
        with self.database.writing() as session:
            session.execute(update(Run).where(col(Run.id) == run_id).values(**values))

    def fail_queued_runs(self, reason: str) -> None:
        """Mark the waiting runs as failed, since there is no engine to take them."""
        self._change_all((QUEUED,), FAILED, reason)

    def interrupt_runs(self, reason: str) -> list[int]:
        """Mark runs that were under way as interrupted, since nothing works on them any more.

        Returns their ids.
        """
        return self._change_all(UNDER_WAY, INTERRUPTED, reason)

    def _change_all(self, states: Iterable[str], state: str, reason: str) -> list[int]:
        with self.database.writing() as session:
            runs = session.exec(select(Run).where(col(Run.state).in_(list(states)))).all()
            for run in runs:
                run.state, run.reason, run.ended = state, reason, time.time()
                _note_state(session, run)
            return [run.id or 0 for run in runs]

    def active_runs(self) -> list[Run]:
        """Runs that wait or are under way, oldest first."""
        with self.database.reading() as session:
            return list(
                session.exec(select(Run).where(col(Run.state).in_(ACTIVE_STATES)).order_by(col(Run.id))).all()
            )

    def runs_in(self, *states: str) -> list[Run]:
        """Runs in any of these states, oldest first."""
        with self.database.reading() as session:
            return list(
                session.exec(select(Run).where(col(Run.state).in_(states)).order_by(col(Run.id))).all()
            )

    # What people ask of a run under way.

    def requests(self, run_ids: Iterable[int]) -> Sequence[Run]:
        """Those of these runs of which somebody wants something: to stop, pause, save, write a sample,
        change.
        """
        asked = (
            col(Run.stop_requested)
            | col(Run.pause_requested)
            | col(Run.save_requested)
            | col(Run.sample_requested)
            | col(Run.change_requested)
        )
        with self.database.reading() as session:
            return session.exec(select(Run).where(col(Run.id).in_(list(run_ids)), asked)).all()

    def request_stop(self, run_id: int) -> Run:
        """Ask a run to stop; one that has not started is stopped at once. Raises NotFound."""
        with self.database.writing() as session:
            run = _run_in(session, run_id)
            if run.state == QUEUED:
                run.state, run.reason, run.ended = STOPPED, _waited_at(session, run_id), time.time()
                _note_state(session, run)
            elif run.active:
                run.stop_requested = True
        return run

    def request_pause(self, run_id: int) -> Run:
        """Ask a run to pause; one that has not started is paused at once, twice does it once.

        Raises NotFound, or InUse if it is over.
        """
        with self.database.writing() as session:
            run = _run_in(session, run_id)
            if run.state == PAUSED:
                return run
            if not run.active:
                raise InUse(f"Run {run_id} ({run.name}) is {run.state}, so there is nothing to pause.")
            if run.state == QUEUED:
                run.state, run.reason, run.ended = PAUSED, _waited_at(session, run_id), time.time()
                _note_state(session, run)
            elif run.state != PAUSING:
                run.state, run.pause_requested = PAUSING, True
                _note_state(session, run)
        return run

    def request_of_running(self, run_id: int, what: str, **values: Any) -> Run:
        """Set columns that ask something of a run that is running; `what` completes "there is nothing to".

        Raises NotFound, InUse.
        """
        with self.database.writing() as session:
            run = _run_in(session, run_id)
            if run.state != RUNNING:
                raise InUse(f"Run {run_id} ({run.name}) is {run.state}, so there is nothing to {what}.")
            for name, value in values.items():
                setattr(run, name, value)
        return run

    def add_change(self, run_id: int, values: Mapping[str, Any]) -> Run:
        """Have options of a run change: from its next step on, or when it goes on.

        Raises NotFound, InUse if it is finished.
        """
        with self.database.writing() as session:
            run = _run_in(session, run_id)
            if run.state == FINISHED:
                raise InUse(
                    f"Run {run_id} ({run.name}) is finished; duplicate it to train with other options."
                )
            run.changes, run.change_requested = (
                [*run.changes, {"values": dict(values), "at": time.time()}],
                True,
            )
            session.add(run)
            return run

    def settle_changes(self, run_id: int, steps: Mapping[int, int], total_steps: int) -> None:
        """Note after which step each of these changes, by its number, was taken over, and how many steps are
        planned now.
        """
        with self.database.writing() as session:
            run = _run_in(session, run_id)
            run.changes = [
                {**one, "step": steps[at]} if at in steps else one for at, one in enumerate(run.changes)
            ]
            run.change_requested = any(one.get("step") is None for one in run.changes)
            run.details = {**run.details, "total_steps": total_steps}
            session.add(run)

    # Checkpoints.

    def add_checkpoint(self, row: Checkpoint) -> None:
        """Store a checkpoint, then forget those that are neither among the last two nor the best by
        validation.
        """
        with self.database.writing() as session:
            session.add(row)
            session.execute(update(Run).where(col(Run.id) == row.run_id).values(save_requested=False))
        kept = self.checkpoints(row.run_id)
        best = best_checkpoint(kept)
        self._forget([one for one in kept[2:] if best is None or one.id != best.id])

    def _forget(self, rows: Sequence[Checkpoint]) -> None:
        """Delete checkpoints, and their files where no other row needs them."""
        with self.database.writing() as session:
            session.execute(delete(Checkpoint).where(col(Checkpoint.id).in_([row.id for row in rows])))
            needed = set(session.exec(select(Adapter.digest)).all())
            for pair in session.exec(select(Checkpoint.adapter_digest, Checkpoint.state_digest)).all():
                needed |= set(pair)
        for digest in {one for row in rows for one in (row.adapter_digest, row.state_digest)} - needed:
            self.blobs.remove(digest)

    def checkpoints(self, run_id: int) -> Sequence[Checkpoint]:
        """A run's checkpoints, newest first."""
        with self.database.reading() as session:
            query = select(Checkpoint).where(Checkpoint.run_id == run_id)
            return session.exec(query.order_by(col(Checkpoint.step).desc(), col(Checkpoint.id).desc())).all()


def best_checkpoint(rows: Sequence[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest validation loss, the earlier of two; None if none was judged."""
    judged = [one for one in rows if one.validation_loss is not None]
    return min(judged, key=lambda one: (one.validation_loss, one.step), default=None)


def _may_share(first: Run, other: Run) -> bool:
    """Whether two waiting runs may train at once.

    Whether their shapes allow it turns out when they are prepared.
    """
    if other.base_id != first.base_id:
        return False
    return (bool(first.sweep) and other.sweep == first.sweep) or (first.together and other.together)


def _last_position(session: Session) -> float:
    return session.exec(select(func.max(Run.position))).one() or 0.0


def _waited_at(session: Session, run_id: int) -> str:
    """Where a run stood that has left the queue before it was taken."""
    step = session.exec(select(func.max(Checkpoint.step)).where(Checkpoint.run_id == run_id)).one()
    return f"while it waited to go on from step {step}" if step else "before it started"


def _note_state(session: Session, run: Run) -> None:
    session.add(run)
    text = f"{run.state}: {run.reason}" if run.reason else run.state
    session.add(Note(run_id=run.id or 0, text=text[:1].upper() + text[1:], kind=STATE))


def _run_in(session: Session, run_id: int) -> Run:
    """The run with this id, to be changed in this session. Raises NotFound."""
    run = session.get(Run, run_id)
    if run is None:
        raise NotFound(f"There is no run {run_id}.")
    return run
