"""Who can answer on a base, as the fields of the playground offer it."""

from __future__ import annotations

from collections.abc import Sequence

from app.service.workbench import Workbench
from app.web.sections.playground.talk import PLAIN, PLAIN_BASE
from storage.tables import Adapter, Base

SIDE, SINGLE = "Side by side", "One at a time"


def adapters_for(workbench: Workbench, base: str | None) -> list[str]:
    """Names of the adapters that answer on this base, newest first."""
    if base is None:
        return []
    fingerprint = workbench.registry.find(Base, base).fingerprint
    rows = [row for row in workbench.registry.all(Adapter) if row.base_fingerprint == fingerprint]
    return [row.name for row in rows if workbench.classifiers.labels(row) is None]


def speakers_of(mode: str, adapters: Sequence[str] | None, speaker: str | None, with_base: bool) -> list[str]:
    """Who answers, PLAIN for the base."""
    if mode == SINGLE:
        return [PLAIN if speaker in (PLAIN_BASE, None) else speaker]
    chosen = list(adapters or [])
    return [PLAIN, *chosen] if with_base or not chosen else chosen
