"""What a browser shows around the page: title and icon while something trains, what has ended, its looks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from app.service.workbench import Workbench
from storage.errors import NotFound
from storage.tables import QUEUED, Job, Run

_KEY = re.compile(r"(run|job) ([0-9]{1,19})")


def tab_news(workbench: Workbench, followed: Sequence[str]) -> dict[str, Any]:
    """`followed`: what was active when the browser last asked."""
    runs, jobs = workbench.registry.runs.active(), workbench.registry.jobs.active()
    active = [*(f"run {one.id}" for one in runs), *(f"job {one.id}" for one in jobs)]
    return {
        "running": running(workbench, [run for run in runs if run.state != QUEUED]),
        "active": active,
        "ended": list(_ended(workbench, [key for key in followed if key not in active])),
        "look": _look(workbench),
    }


def _look(workbench: Workbench) -> dict[str, Any] | None:
    """What is set for the page; None where the settings cannot be used, which the masthead says."""
    if workbench.preferences.fault:
        return None
    chosen = workbench.preferences.values()
    return {"theme": chosen.theme, "density": chosen.density, "notifications": chosen.notifications}


def running(workbench: Workbench, under_way: Sequence[Run]) -> dict[str, Any] | None:
    """What is being trained, by name, and how much of it is done; None if nothing is."""
    if not under_way:
        return None
    run, count = under_way[0], len(under_way)
    point, total = workbench.registry.measurements.last_point(run.id or 0), run.details.get("total_steps")
    return {
        "name": run.name if count == 1 else f"{count} adapters at once",
        "share": min(1.0, point.step / total) if point and total else None,
        "count": count,
    }


def _ended(workbench: Workbench, keys: Iterable[str]) -> Iterator[dict[str, str]]:
    """One sentence for each that is over; what was removed meanwhile is left out."""
    for key in keys:
        found = _KEY.fullmatch(str(key))
        try:
            if found and found[1] == "run":
                run = workbench.registry.get(Run, int(found[2]))
                yield {"key": key, "said": f"Run {run.id} ({run.name}) is {run.state}."}
            elif found:
                job = workbench.registry.get(Job, int(found[2]))
                yield {"key": key, "said": f"{job.title}: {job.state}."}
        except NotFound:
            continue
