"""Conditions that several subjects of the registry share."""

from __future__ import annotations

from typing import Any

from sqlmodel import Session, SQLModel, col, select

from storage.errors import InUse
from storage.tables import ACTIVE_STATES, Adapter, Run


def there(query: Any, table: type[SQLModel]) -> Any:
    """Without the adapters that are deleted and only wait for somebody to want them back."""
    return query.where(col(Adapter.deleted).is_(None)) if table is Adapter else query


def refuse_active(session: Session, condition: Any, name: str) -> None:
    """Raise InUse if a run that waits or is under way meets `condition`, since it needs `name`."""
    run = session.exec(select(Run).where(condition, col(Run.state).in_(ACTIVE_STATES))).first()
    if run is not None:
        raise InUse(f"Run {run.id} ({run.name}) is {run.state} and needs {name!r}; stop it or wait.")
