"""Who can answer on a base, as the fields of the playground offer it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from app.service.usual import usual_base
from app.service.workbench import Workbench
from app.shared.checkpoint_rows import as_adapter
from app.shared.errors import USER_ERRORS
from app.shared.speakers import PLAIN, PLAIN_BASE, as_other_base, checkpoint_name, speaker_parts
from core.base_model.describe import writes_text
from storage.tables import Adapter, Base, Run

SIDE, SINGLE = "Side by side", "One at a time"
_CHECKPOINTS = 40
"""The newest of a base that are offered; others can be typed by their names."""


def writing_bases(workbench: Workbench) -> list[str]:
    """The bases that write text."""
    return [row.name for row in workbench.registry.all(Base) if writes_text(row.architecture)]


def base_to_begin_with(workbench: Workbench, wanted: str | None) -> str | None:
    """The one that is wanted, the usual one or the first, of those that write text; None if none does."""
    names = writing_bases(workbench)
    return next((one for one in (wanted, usual_base(workbench), *names) if one in names), None)


def adapters_for(workbench: Workbench, base: str | None) -> list[str]:
    """Names of the adapters that answer on this base, newest first."""
    if base is None:
        return []
    fingerprint = workbench.registry.find(Base, base).fingerprint
    rows = [row for row in workbench.registry.all(Adapter) if row.base_fingerprint == fingerprint]
    return [row.name for row in rows if workbench.classifiers.labels(row) is None]


def columns_choices(
    workbench: Workbench, base: str | None, chosen: Sequence[str] | None = (), *, others: bool = True
) -> list[tuple[str, str]]:
    """What can be a column beside the base, as words and speaker: adapters, checkpoints, with `others` the
    other bases, and those mixtures and checkpoints that are chosen already.
    """
    names = adapters_for(workbench, base)
    offered = [(name, name) for name in names] + _checkpoints(workbench, base)
    offered += _other_bases(workbench, base) if others else []
    known = {speaker for _, speaker in offered}
    return offered + [
        (one, one) for one in chosen or () if one not in known and _can_answer(workbench, one, base)
    ]


def is_mixture(workbench: Workbench, speaker: str) -> bool:
    """Whether it is one of the weighted sums, and no adapter or base that is called like one."""
    one = speaker in workbench.registry.names(Adapter) or speaker.startswith(as_other_base(""))
    return "=" in speaker and not one


def speakers_of(mode: str, adapters: Sequence[str] | None, speaker: str | None, with_base: bool) -> list[str]:
    """Who answers, PLAIN for the base."""
    if mode == SINGLE:
        return [PLAIN if speaker in (PLAIN_BASE, None) else speaker]
    chosen = list(adapters or [])
    return [PLAIN, *chosen] if with_base or not chosen else chosen


def _other_bases(workbench: Workbench, base: str | None) -> list[tuple[str, str]]:
    names = writing_bases(workbench)
    return [(f"{one} (another base, after the others)", as_other_base(one)) for one in names if one != base]


def _checkpoints(workbench: Workbench, base: str | None) -> list[tuple[str, str]]:
    if base is None:
        return []
    registry, fingerprint = workbench.registry, workbench.registry.find(Base, base).fingerprint
    runs = {run.id: run for run in registry.all(Run) if run.base_fingerprint == fingerprint}
    kept = {row.digest for row in registry.all(Adapter)}
    found = (
        (runs[row.run_id], row, checkpoint_name(row.run_id, row.step))
        for row in registry.checkpoints.all()
        if row.run_id in runs and row.adapter_digest not in kept
    )
    writing = (one for one in found if workbench.classifiers.labels(as_adapter(*one)) is None)
    return [(f"{run.name} · step {row.step:,}", name) for run, row, name in islice(writing, _CHECKPOINTS)]


def _can_answer(workbench: Workbench, speaker: str, base: str | None) -> bool:
    """Whether all that it is made of is there, and of this base."""
    try:
        parts = speaker_parts(workbench.registry, speaker)
        fingerprint = workbench.registry.find(Base, base or "").fingerprint
    except USER_ERRORS:
        return False
    return bool(parts) and all(part.adapter.base_fingerprint == fingerprint for part in parts)
