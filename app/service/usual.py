"""What a form begins with: what is set for it, or else where the work was."""

from __future__ import annotations

from app.service.workbench import Workbench
from app.shared.bases import closest_base
from storage.registry import Registry
from storage.tables import Adapter, Base, Dataset, Run

_MERGED = "merged"


def usual_base(workbench: Workbench) -> str | None:
    """The default base, if one is set and here; else that of the newest run or adapter; else the newest that
    is no merge: those are made to be used.
    """
    registry = workbench.registry
    bases = registry.all(Base)
    names = {base.name for base in bases}
    chosen = "" if workbench.preferences.fault else workbench.preferences.values().default_base
    if chosen in names:
        return chosen
    return _worked_on(registry, names) or next(
        (base.name for base in sorted(bases, key=lambda one: one.source == _MERGED)), None
    )


def _worked_on(registry: Registry, there: set[str]) -> str | None:
    found: list[tuple[float, str]] = [
        (run.created, run.base_name) for run in registry.all(Run, limit=1) if run.base_name in there
    ]
    for adapter in registry.all(Adapter, limit=1):
        base = closest_base(registry, adapter)
        found += [(adapter.created, base.name)] if base else []
    return max(found)[1] if found else None


def usual_data(registry: Registry) -> str | None:
    """The data set that was imported last."""
    return next((row.name for row in registry.all(Dataset, limit=1)), None)
