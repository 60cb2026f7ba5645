"""What people ask of runs under way: to stop, pause, save, write a sample, change."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, col, select

from storage.database import Database
from storage.errors import InUse
from storage.run_states import change_state, run_in
from storage.tables import (
    FINISHED,
    IDLE_STATES,
    PAUSED,
    PAUSING,
    QUEUED,
    RUNNING,
    STOPPED,
    Checkpoint,
    Run,
)


class RunRequests:
    """Wishes, stored with the run until the engine sees them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self, run_ids: Iterable[int]) -> Sequence[Run]:
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
        with self._database.reading() as session:
            return session.exec(select(Run).where(col(Run.id).in_(list(run_ids)), asked)).all()

    def stop(self, run_id: int) -> Run:
        """Ask a run to stop; one that nothing works on is stopped at once. Raises NotFound."""
        self.stop_idle(run_id)
        with self._database.writing() as session:
            run = run_in(session, run_id)
            if run.active:
                run.stop_requested = True
        return run

    def stop_idle(self, run_id: int) -> bool:
        """Stop a run that nothing works on. False if something does, or if it is over. Raises NotFound."""
        with self._database.writing() as session:
            run = run_in(session, run_id)
            if run.state not in IDLE_STATES:
                return False
            change_state(session, run, STOPPED, _stood_at(session, run))
            run.bytes_needed = 0
            return True

    def pause(self, run_id: int) -> Run:
        """Ask a run to pause; one that has not started is paused at once, twice does it once.

        Raises NotFound, or InUse if it is over.
        """
        with self._database.writing() as session:
            run = run_in(session, run_id)
            if run.state == PAUSED:
                return run
            if not run.active:
                raise InUse(f"Run {run_id} ({run.name}) is {run.state}, so there is nothing to pause.")
            if run.state == QUEUED:
                change_state(session, run, PAUSED, _stood_at(session, run))
            elif run.state != PAUSING:
                change_state(session, run, PAUSING)
                run.pause_requested = True
        return run

    def save(self, run_id: int) -> Run:
        """Ask a run to write a checkpoint now. Raises NotFound, or InUse if it is not running."""
        with self._database.writing() as session:
            run = _running(session, run_id, "save")
            run.save_requested = True
        return run

    def settle_save(self, run_id: int) -> None:
        """Note that no checkpoint is asked for any more, although none was written."""
        with self._database.writing() as session:
            run_in(session, run_id).save_requested = False

    def sample(self, run_id: int) -> Run:
        """Ask a run to answer its sample prompts now. Raises NotFound, or InUse if it is not running."""
        with self._database.writing() as session:
            run = _running(session, run_id, "sample")
            run.sample_requested = True
        return run

    def change(self, run_id: int, values: Mapping[str, Any]) -> Run:
        """Have options of a run change: from its next step on, or when it goes on.

        Raises NotFound, InUse if it is finished: see RunQueue.extend.
        """
        with self._database.writing() as session:
            run = run_in(session, run_id)
            if run.state == FINISHED:
                raise InUse(
                    f"Run {run_id} ({run.name}) is finished; extend it, or duplicate it to train with other "
                    "options."
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
        with self._database.writing() as session:
            run = run_in(session, run_id)
            run.changes = [
                {**one, "step": steps[at]} if at in steps else one for at, one in enumerate(run.changes)
            ]
            run.change_requested = any(one.get("step") is None for one in run.changes)
            run.details = {**run.details, "total_steps": total_steps}
            session.add(run)


def _running(session: Session, run_id: int, what: str) -> Run:
    """The run, if it is running; `what` completes "there is nothing to". Raises NotFound, InUse."""
    run = run_in(session, run_id)
    if run.state != RUNNING:
        raise InUse(f"Run {run_id} ({run.name}) is {run.state}, so there is nothing to {what}.")
    return run


def _stood_at(session: Session, run: Run) -> str:
    """Where a run stood that is paused or stopped while nothing works on it."""
    step = session.exec(select(func.max(Checkpoint.step)).where(Checkpoint.run_id == run.id)).one()
    if not step:
        return "before it started"
    return f"while it waited to go on from step {step}" if run.state == QUEUED else f"as of step {step}"
