"""The list of runs: what is asked of the registry for a page of it, and its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from app.service.workbench import Workbench
from app.web.parts.markup import day, number
from app.web.parts.picker import Facet, Query, Row, Rows
from app.web.sections.runs.run_markup import state_words
from storage.run_search import RunQuery
from storage.tables import QUEUED, Point, Run

_STATES = (
    ("", "Any state"),
    ("active", "Under way or waiting"),
    ("finished", "Finished"),
    ("halted", "Stopped or paused"),
    ("broken", "Failed or interrupted"),
)
_ORDERS = (
    ("work", "Under way, then newest"),
    ("best", "Best validation loss"),
    ("name", "Name"),
    ("oldest", "Oldest"),
)


def find(workbench: Workbench, query: Query) -> Rows:
    """One page of the list. What each row needs is asked for all of them at once."""
    registry, facets = workbench.registry, query.facets
    wanted = RunQuery(
        query.words,
        facets.get("state", ""),
        facets.get("base", ""),
        facets.get("data", ""),
        facets.get("order", "work"),
    )
    runs, total = registry.runs.search(wanted, query.most, query.start)
    ids = [run.id or 0 for run in runs]
    best, last = registry.measurements.best_losses(ids), registry.measurements.last_points(ids)
    places = {run.id: place for place, run in enumerate(registry.queue.waiting(), start=1)}
    sweeps = registry.runs.sweeps([run.sweep for run in runs if run.sweep])
    rows = [
        _row(run, places.get(run.id), last.get(run.id or 0), best.get(run.id or 0), sweeps.get(run.sweep, ""))
        for run in runs
    ]
    return Rows(rows, total, _facets(workbench))


def _row(run: Run, place: int | None, last: Point | None, best: float | None, group: str) -> Row:
    total = run.details.get("total_steps")
    share = min(1.0, last.step / total) if last is not None and total else 0.0
    waits = f", {place}." if place else ""
    return Row(
        key=str(run.id),
        title=run.name,
        sub=f"{run.base_name} · {run.dataset_name} · {day(run.started or run.created)}",
        figure="" if best is None else number(best),
        badges=((f"{state_words(run.state)[0]}{waits}", state_words(run.state)[1]),),
        share=share if run.active and run.state != QUEUED else None,
        group=group,
    )


def _facets(workbench: Workbench) -> Sequence[Facet]:
    words = workbench.registry.runs.words()
    return (
        Facet("state", "State", _STATES),
        Facet("base", "Base model", _named("Any base", words, "base")),
        Facet("data", "Data set", _named("Any data", words, "dataset")),
        Facet("order", "Order", _ORDERS),
    )


def _named(every: str, words: Mapping[str, Sequence[str]], what: str) -> list[tuple[str, str]]:
    return [("", every), *[(name, name) for name in words[what]]]
