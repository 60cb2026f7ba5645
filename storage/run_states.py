"""The states of a run. Each change is checked against this table, and written to the run's log, in the
transaction that makes it:

    from         to  queued  preparing  running  pausing  paused  finished  stopped  failed  interrupted
    queued             ·         ●         ·        ·        ●        ·        ●        ●         ●
    preparing          ●         ·         ●        ●        ·        ·        ●        ●         ●
    running            ·         ·         ·        ●        ●        ●        ●        ●         ●
    pausing            ●         ·         ·        ·        ●        ●        ●        ●         ●
    paused             ●         ·         ·        ·        ·        ·        ●        ·         ·
    finished           ●         ·         ·        ·        ·        ·        ·        ·         ·
    stopped            ●         ·         ·        ·        ·        ·        ·        ·         ·
    failed             ●         ·         ·        ·        ·        ·        ·        ·         ·
    interrupted        ●         ·         ·        ·        ·        ·        ●        ·         ·

A new run is queued. The engine claims it (preparing) and puts it back if it cannot share a batch, also one
that somebody has asked to pause meanwhile. People stop and pause: a run that waits at once, one under way is
asked to. One that is paused or was interrupted can be stopped, too: it keeps what its last checkpoint holds.
A finished run waits again when it is extended. A pause is overtaken by the run's end, or by a stop. A running
run is paused without having been asked when the disk is full. One that waits for other machines has not begun
when it is stopped. Waiting runs fail when there is no engine to
take them, and are interrupted when the memory ends as they are taken.
"""

from __future__ import annotations

import time

from sqlmodel import Session

from storage.errors import NotFound
from storage.tables import (
    ACTIVE_STATES,
    FAILED,
    FINISHED,
    INTERRUPTED,
    PAUSED,
    PAUSING,
    PREPARING,
    QUEUED,
    RUNNING,
    STATE,
    STOPPED,
    Note,
    Run,
)
from storage.transitions import Transitions, require_follows

TRANSITIONS: Transitions = {
    QUEUED: (PREPARING, PAUSED, STOPPED, FAILED, INTERRUPTED),
    PREPARING: (QUEUED, RUNNING, PAUSING, STOPPED, FAILED, INTERRUPTED),
    RUNNING: (PAUSING, PAUSED, FINISHED, STOPPED, FAILED, INTERRUPTED),
    PAUSING: (QUEUED, PAUSED, FINISHED, STOPPED, FAILED, INTERRUPTED),
    PAUSED: (QUEUED, STOPPED),
    FINISHED: (QUEUED,),
    STOPPED: (QUEUED,),
    FAILED: (QUEUED,),
    INTERRUPTED: (QUEUED, STOPPED),
}


def change_state(session: Session, run: Run, state: str, reason: str | None = None) -> None:
    """Change a run's state, with its reason if one is given, and its log with it. A run that is over by that
    has ended now.

    Raises InvalidTransition.
    """
    require_follows(TRANSITIONS, f"Run {run.id} ({run.name})", run.state, state)
    run.state = state
    if reason is not None:
        run.reason = reason
    if state not in ACTIVE_STATES:
        run.ended = time.time()
    note_state(session, run)


def note_state(session: Session, run: Run) -> None:
    """Write the state that a run is in to its log."""
    session.add(run)
    text = f"{run.state}: {run.reason}" if run.reason else run.state
    session.add(Note(run_id=run.id or 0, text=text[:1].upper() + text[1:], kind=STATE))


def run_in(session: Session, run_id: int) -> Run:
    """The run with this id, to be changed in this session. Raises NotFound."""
    run = session.get(Run, run_id)
    if run is None:
        raise NotFound(f"There is no run {run_id}.")
    return run
