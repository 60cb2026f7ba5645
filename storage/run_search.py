"""Looking for runs among many: by words, state, base and data set, in several orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import case, func, or_
from sqlmodel import Session, col, select

from storage.tables import (
    ACTIVE_STATES,
    FAILED,
    FINISHED,
    INTERRUPTED,
    PAUSED,
    QUEUED,
    STOPPED,
    UNDER_WAY,
    Point,
    Run,
)

GROUPS: Mapping[str, Sequence[str]] = {
    "active": ACTIVE_STATES,
    "finished": (FINISHED,),
    "halted": (PAUSED, STOPPED),
    "broken": (FAILED, INTERRUPTED),
}
"""Names of the states that are looked for together."""

_best = (
    select(func.min(Point.validation_loss))
    .where(Point.run_id == Run.id, col(Point.validation_loss).is_not(None))
    .correlate(Run)
    .scalar_subquery()
)
_by_work = (
    case((col(Run.state).in_(UNDER_WAY), 0), (col(Run.state) == QUEUED, 1), else_=2),
    case((col(Run.state) == QUEUED, Run.position), else_=0),
    case((col(Run.state) == QUEUED, Run.id), else_=-col(Run.id)),
)
_ORDERS: Mapping[str, Sequence[Any]] = {
    "work": _by_work,
    "oldest": (col(Run.id),),
    "name": (func.lower(Run.name), col(Run.id)),
    "best": (_best.is_(None), _best, col(Run.id).desc()),
}
ORDERS = tuple(_ORDERS)
"""`work`: those under way, then those that wait in the queue's order, then the others, the newest first."""


@dataclass(frozen=True)
class RunQuery:
    """Which runs, in which order. Empty fields do not filter."""

    words: str = ""
    """Each word must be in the name, the base's or the data set's name."""
    group: str = ""
    """A name of GROUPS."""
    base: str = ""
    dataset: str = ""
    order: str = "work"


def search(session: Session, query: RunQuery, limit: int, offset: int) -> tuple[list[Run], int]:
    """One page of the runs that match, and how many match in all."""
    conditions = _conditions(query)
    total = session.exec(select(func.count()).select_from(Run).where(*conditions)).one()
    rows = (
        select(Run)
        .where(*conditions)
        .order_by(*_ORDERS.get(query.order, _by_work))
        .offset(offset)
        .limit(limit)
    )
    return list(session.exec(rows).all()), total


def _conditions(query: RunQuery) -> list[Any]:
    searched = (Run.name, Run.base_name, Run.dataset_name)
    found: list[Any] = [
        or_(*[col(column).icontains(word, autoescape=True) for column in searched])
        for word in query.words.split()
    ]
    if query.group in GROUPS:
        found.append(col(Run.state).in_(GROUPS[query.group]))
    if query.base:
        found.append(Run.base_name == query.base)
    if query.dataset:
        found.append(Run.dataset_name == query.dataset)
    return found
