"""Runs and their states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

from sqlalchemy import delete, func, update
from sqlmodel import col, select

from storage.checkpoints import Checkpoints
from storage.database import Database
from storage.errors import InUse
from storage.run_search import RunQuery, search
from storage.run_states import change_state, run_in
from storage.tables import (
    ACTIVE_STATES,
    FAILED,
    FINISHED,
    INTERRUPTED,
    LOG,
    PAUSED,
    PREPARING,
    QUEUED,
    RUNNING,
    STOPPED,
    UNDER_WAY,
    Adapter,
    Note,
    Run,
)

RESUMED_FROM = "resumed_from"
"""In a run's details: the step from which it last went on by itself."""


class Runs:
    """The runs, whatever their state."""

    def __init__(self, database: Database, checkpoints: Checkpoints) -> None:
        self._database, self._checkpoints = database, checkpoints

    def of_sweep(self, sweep: str) -> list[Run]:
        """The runs that were started together, oldest first."""
        with self._database.reading() as session:
            return list(session.exec(select(Run).where(Run.sweep == sweep).order_by(col(Run.id))).all())

    def on(self, fingerprint: str, digest: str) -> list[Run]:
        """The runs on a base with these weights and a version of data with this digest, the newest first."""
        here = (Run.base_fingerprint == fingerprint, Run.dataset_digest == digest)
        with self._database.reading() as session:
            return list(session.exec(select(Run).where(*here).order_by(col(Run.id).desc())).all())

    def search(self, query: RunQuery, limit: int = 100, offset: int = 0) -> tuple[list[Run], int]:
        """One page of the runs that match, and how many match in all."""
        with self._database.reading() as session:
            return search(session, query, limit, offset)

    def sweeps(self, wanted: Sequence[str]) -> dict[str, str]:
        """What each of these sweeps is called: what the names of its runs begin with, how many it has, and
        their numbers.
        """
        with self._database.reading() as session:
            ends: list[Any] = [end(column) for column in (Run.name, Run.id) for end in (func.min, func.max)]
            query = select(Run.sweep, func.count(), *ends).where(col(Run.sweep).in_(set(wanted)))
            found = session.execute(query.group_by(col(Run.sweep))).all()
        return {
            sweep: f"{_common_words(first, last)} · sweep of {count} (runs {start}–{end})"
            for sweep, count, first, last, start, end in found
        }

    def words(self) -> dict[str, list[str]]:
        """What runs can be filtered by: the names of bases and data sets, each once."""
        with self._database.reading() as session:
            return {
                "base": sorted(session.exec(select(Run.base_name).distinct()).all()),
                "dataset": sorted(session.exec(select(Run.dataset_name).distinct()).all()),
            }

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

    def begin(self, run_id: int, details: Mapping[str, Any]) -> None:
        """Note what was prepared; the run is running now, unless somebody asked it to pause meanwhile."""
        with self._database.writing() as session:
            run = run_in(session, run_id)
            run.details = {**run.details, **details}
            if run.state == PREPARING:
                change_state(session, run, RUNNING)

    def finished(self, run_id: int, reason: str = "", adapter_id: int | None = None) -> None:
        """Note that a run has come to its end, and the adapter it has left. Raises InvalidTransition."""
        self._left_adapter(run_id, FINISHED, reason, adapter_id)

    def stopped(self, run_id: int, reason: str, adapter_id: int | None = None) -> None:
        """Note that a run has stopped before its end, and the adapter it has left, if any.

        Raises InvalidTransition.
        """
        self._left_adapter(run_id, STOPPED, reason, adapter_id)

    def left(self, run_id: int, adapter_id: int) -> None:
        """Note the adapter that a run has left which was stopped while nothing worked on it."""
        with self._database.writing() as session:
            run_in(session, run_id).adapter_id = adapter_id

    def paused(self, run_id: int, reason: str) -> None:
        """Note that a run is paused as it was asked to. Raises InvalidTransition."""
        with self._database.writing() as session:
            run = run_in(session, run_id)
            change_state(session, run, PAUSED, reason)
            run.pause_requested = False

    def needs_space(self, run_id: int, reason: str, bytes_needed: int) -> None:
        """Note that a run is paused until so much is free on the disk. Raises InvalidTransition."""
        with self._database.writing() as session:
            run = run_in(session, run_id)
            change_state(session, run, PAUSED, reason)
            run.bytes_needed, run.save_requested = bytes_needed, False

    def left_to_people(self, run_id: int, why: str) -> None:
        """Note in its log why an idle run does not go on by itself; it waits for no space any more."""
        with self._database.writing() as session:
            run_in(session, run_id).bytes_needed = 0
            session.add(Note(run_id=run_id, text=why, kind=LOG))

    def failed(self, run_id: int, reason: str) -> None:
        """Note what a run has failed by. Raises InvalidTransition."""
        with self._database.writing() as session:
            change_state(session, run_in(session, run_id), FAILED, reason)

    def interrupted(self, run_id: int, reason: str) -> None:
        """Note what has interrupted a run, which can go on later. Raises InvalidTransition."""
        with self._database.writing() as session:
            change_state(session, run_in(session, run_id), INTERRUPTED, reason)

    def resumed_from(self, run_id: int, step: int) -> None:
        """Note the step from which a run goes on by itself."""
        with self._database.writing() as session:
            run = run_in(session, run_id)
            run.details = {**run.details, RESUMED_FROM: step}

    def fail_queued(self, reason: str) -> None:
        """Mark the waiting runs as failed, since there is no engine to take them."""
        self._change_all((QUEUED,), FAILED, reason)

    def interrupt_all(self, reason: str) -> list[int]:
        """Mark runs that were under way as interrupted, since nothing works on them any more.

        Returns their ids.
        """
        return self._change_all(UNDER_WAY, INTERRUPTED, reason)

    def _left_adapter(self, run_id: int, state: str, reason: str, adapter_id: int | None) -> None:
        with self._database.writing() as session:
            run = run_in(session, run_id)
            change_state(session, run, state, reason)
            if adapter_id is not None:
                run.adapter_id = adapter_id

    def _change_all(self, states: Iterable[str], state: str, reason: str) -> list[int]:
        with self._database.writing() as session:
            runs = session.exec(select(Run).where(col(Run.state).in_(list(states)))).all()
            for run in runs:
                change_state(session, run, state, reason)
            return [run.id or 0 for run in runs]

    def active(self) -> list[Run]:
        """Runs that wait or are under way, oldest first."""
        with self._database.reading() as session:
            return list(
                session.exec(select(Run).where(col(Run.state).in_(ACTIVE_STATES)).order_by(col(Run.id))).all()
            )

    def ended(self, since: float, limit: int = 3) -> list[Run]:
        """The newest runs that ended after `since`, however they did."""
        with self._database.reading() as session:
            query = select(Run).where(col(Run.ended) > since, col(Run.state).not_in(ACTIVE_STATES))
            return list(session.exec(query.order_by(col(Run.ended).desc()).limit(limit)).all())

    def in_states(self, *states: str) -> list[Run]:
        """Runs in any of these states, oldest first."""
        with self._database.reading() as session:
            return list(
                session.exec(select(Run).where(col(Run.state).in_(states)).order_by(col(Run.id))).all()
            )


def _common_words(first: str, last: str) -> str:
    """The words that the first and the last of names in order begin with, and with them all between."""
    pairs = zip(first.split(), last.split(), strict=False)
    common = " ".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return common or first.partition(" ")[0]
