"""What the list's value names: numbers of runs with commas between."""

from __future__ import annotations

from app.service.workbench import Workbench
from app.web.parts.shell import refusal
from storage.errors import NotFound
from storage.tables import Run

MOST = 64
STORE = "runs"
"""What the parts of the section's live view have in common."""


def ids_of(keys: str) -> list[int]:
    """The numbers, each once. What an address holds that is no number is left out."""
    return list(dict.fromkeys(int(one) for one in keys.split(",") if one.strip().isdecimal()))[:MOST]


def one_of(keys: str) -> int:
    """The one run that is shown. Raises a refusal if it is none, or several."""
    ids = ids_of(keys)
    if len(ids) != 1:
        raise refusal("Choose one run on the left first.")
    return ids[0]


def runs_of(workbench: Workbench, keys: str) -> list[Run]:
    """Those of them that are still here."""
    found = []
    for run_id in ids_of(keys):
        try:
            found.append(workbench.registry.get(Run, run_id))
        except NotFound:  # removed meanwhile, here or elsewhere
            continue
    return found


def same_run(workbench: Workbench, keys: str) -> tuple[int, float]:
    """What tells the one run from another that gets its number later. Raises NotFound."""
    run = workbench.registry.get(Run, one_of(keys))
    return run.id or 0, run.created
