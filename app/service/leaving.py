"""What becomes of the runs when whoever looked at them leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence

from app.service.workbench import Workbench
from storage.errors import InUse, NotFound
from storage.tables import QUEUED, Run

WAYS = ("continue", "pause", "stop")
_PATIENCE_SECONDS = 60.0  # to save where they stand
_LOOK_SECONDS = 0.2


def leave_runs(workbench: Workbench, way: str, patience: float = _PATIENCE_SECONDS) -> str:
    """Let all runs that wait or are under way go on, pause or stop, and wait until they have; what became of
    them, in a sentence. Empty if there are none.
    """
    active = workbench.registry.runs.active()
    if not active:
        return ""
    if way == "continue":
        return f"{named(active)} without the page. Start the workbench again to see it."
    # Those that wait first: as soon as another ends, they would begin.
    for run in sorted(active, key=lambda one: one.state != QUEUED):
        _ask(workbench, run.id or 0, way)
    _wait(workbench, [run.id or 0 for run in active], patience)
    return " ".join(_became(workbench, run.id or 0) for run in active)


def named(runs: Sequence[Run]) -> str:
    """ "Run 3 (mine) goes on", for one or several."""
    names = ", ".join(f"{run.id} ({run.name})" for run in runs)
    return f"Run {names} goes on" if len(runs) == 1 else f"Runs {names} go on"


def _ask(workbench: Workbench, run_id: int, way: str) -> None:
    try:
        workbench.runs.pause(run_id) if way == "pause" else workbench.runs.stop(run_id)
    except (InUse, NotFound):
        return  # it ended in this moment


def _wait(workbench: Workbench, run_ids: Sequence[int], patience: float) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        workbench.notice_deaths()
        if not any(workbench.registry.get(Run, one).active for one in run_ids):
            return
        time.sleep(_LOOK_SECONDS)


def _became(workbench: Workbench, run_id: int) -> str:
    run = workbench.registry.get(Run, run_id)
    said = f"Run {run.id} ({run.name}) is {run.state}"
    return f"{said}: it was asked to end, and goes on until it has saved." if run.active else f"{said}."
