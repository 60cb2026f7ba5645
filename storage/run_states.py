"""The states of a run: each change of them is written to its log in the same transaction."""

from __future__ import annotations

from sqlmodel import Session

from storage.errors import NotFound
from storage.tables import STATE, Note, Run


def note_state(session: Session, run: Run) -> None:
    session.add(run)
    text = f"{run.state}: {run.reason}" if run.reason else run.state
    session.add(Note(run_id=run.id or 0, text=text[:1].upper() + text[1:], kind=STATE))


def run_in(session: Session, run_id: int) -> Run:
    """The run with this id, to be changed in this session. Raises NotFound."""
    run = session.get(Run, run_id)
    if run is None:
        raise NotFound(f"There is no run {run_id}.")
    return run
