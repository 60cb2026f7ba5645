"""Jobs: work that is neither training nor chat. Each change of a job's state is checked against this table:

    from         to  queued  running  finished  stopped  failed  interrupted
    queued             ·        ●        ·         ●        ·         ●
    running            ·        ·        ●         ●        ●         ●
    finished           ·        ·        ·         ·        ·         ·
    stopped            ·        ·        ·         ·        ·         ·
    failed             ·        ·        ·         ·        ·         ·
    interrupted        ·        ●        ·         ·        ·         ·

A new job is queued until its process has come up. One whose process takes so long that it was given up for
dead runs after all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import func, update
from sqlmodel import Session, col, select

from storage.database import Database
from storage.errors import NotFound
from storage.tables import ACTIVE_STATES, FAILED, FINISHED, INTERRUPTED, QUEUED, RUNNING, STOPPED, Job
from storage.transitions import Transitions, require_follows

TRANSITIONS: Transitions = {
    QUEUED: (RUNNING, STOPPED, INTERRUPTED),
    RUNNING: (FINISHED, STOPPED, FAILED, INTERRUPTED),
    FINISHED: (),
    STOPPED: (),
    FAILED: (),
    INTERRUPTED: (RUNNING,),
}


CANCELLED = "Cancelled. Nothing was added."


class Jobs:
    """The jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of_kind(self, kind: str) -> list[Job]:
        """All of one kind, the newest first."""
        with self._database.reading() as session:
            return list(session.exec(select(Job).where(Job.kind == kind).order_by(col(Job.id).desc())).all())

    def begin(self, job_id: int) -> Job:
        """Note that a process does the job now. Raises NotFound, InvalidTransition."""
        with self._database.writing() as session:
            return _change_state(session, _job_in(session, job_id), RUNNING)

    def report(self, job_id: int, message: str, fraction: float | None) -> None:
        """Note how far a running job has come; one that does not run stays as it is."""
        running = update(Job).where(col(Job.id) == job_id, col(Job.state) == RUNNING)
        with self._database.writing() as session:
            session.execute(running.values(message=message, fraction=fraction))

    def finish(self, job_id: int, result: Mapping[str, Any]) -> None:
        """Note what a job has given. Raises NotFound, InvalidTransition."""
        with self._database.writing() as session:
            job = _change_state(session, _job_in(session, job_id), FINISHED)
            job.message, job.fraction, job.result = "", 1.0, dict(result)

    def fail(self, job_id: int, message: str) -> None:
        """Note what a job has failed by. Raises NotFound, InvalidTransition."""
        with self._database.writing() as session:
            _change_state(session, _job_in(session, job_id), FAILED, message)

    def stop(self, job_id: int, message: str = CANCELLED) -> None:
        """Note that somebody has ended a job; one that is over stays as it is."""
        with self._database.writing() as session:
            job = _job_in(session, job_id)
            if job.active:
                _change_state(session, job, STOPPED, message)

    def interrupt(self, job: Job, message: str) -> None:
        """Note that a job's process is gone, unless its state is another by now than `job` says: then it has
        begun or ended in the meantime.
        """
        with self._database.writing() as session:
            found = _job_in(session, job.id or 0)
            if found.state == job.state:
                _change_state(session, found, INTERRUPTED, message)

    def active(self) -> list[Job]:
        """Jobs that wait or are under way, oldest first."""
        with self._database.reading() as session:
            return list(
                session.exec(select(Job).where(col(Job.state).in_(ACTIVE_STATES)).order_by(col(Job.id))).all()
            )

    def of(
        self, kind: str, about: Mapping[str, object] | None = None, since: float = 0.0, limit: int = 1
    ) -> Sequence[Job]:
        """The newest jobs of a kind, made after `since`, whose arguments hold what `about` says. A key may be
        a path, such as adapter.id.
        """
        wanted = [
            func.json_extract(Job.arguments, f"$.{key}") == value for key, value in (about or {}).items()
        ]
        query = select(Job).where(Job.kind == kind, col(Job.created) >= since, *wanted)
        with self._database.reading() as session:
            return session.exec(query.order_by(col(Job.id).desc()).limit(limit)).all()

    def failed(self, since: float, limit: int = 3) -> Sequence[Job]:
        """The newest jobs that failed after `since`."""
        return self._ended(since, limit, FAILED, INTERRUPTED)

    def finished(self, since: float, limit: int = 3) -> Sequence[Job]:
        """The newest jobs that finished after `since`."""
        return self._ended(since, limit, FINISHED)

    def _ended(self, since: float, limit: int, *states: str) -> Sequence[Job]:
        with self._database.reading() as session:
            query = select(Job).where(col(Job.state).in_(states), col(Job.ended) > since)
            return session.exec(query.order_by(col(Job.id).desc()).limit(limit)).all()


def _job_in(session: Session, job_id: int) -> Job:
    job = session.get(Job, job_id)
    if job is None:
        raise NotFound(f"There is no job {job_id}.")
    return job


def _change_state(session: Session, job: Job, state: str, message: str | None = None) -> Job:
    require_follows(TRANSITIONS, f"Job {job.id} ({job.title})", job.state, state)
    job.state, job.ended = state, None if state == RUNNING else time.time()
    if message is not None:
        job.message = message
    session.add(job)
    return job
