"""What a job's arguments refer to: rows by their number, so that a rename in between changes nothing.

Earlier versions of the workbench stored names alone; such jobs still run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from storage.errors import NotFound
from storage.registry import Registry
from storage.tables import Adapter, Base

Row = TypeVar("Row", Base, Adapter)
Reference = str | Mapping[str, Any]


def refer(row: Base | Adapter) -> dict[str, Any]:
    """As JSON. `created` tells it from a later row that has got the number of a deleted one."""
    return {"id": row.id, "name": row.name, "created": row.created}


def name_in(reference: Reference) -> str:
    """What the row was called when it was referred to."""
    return reference if isinstance(reference, str) else str(reference["name"])


def referred(registry: Registry, table: type[Row], reference: Reference) -> Row:
    """The row, whatever it is called by now. Raises NotFound if it has been deleted."""
    if isinstance(reference, str) or "id" not in reference:
        return registry.find(table, name_in(reference))
    try:
        row = registry.get(table, int(reference["id"]))
    except NotFound:
        row = None
    if row is None or row.created != reference["created"] or (isinstance(row, Adapter) and row.deleted):
        raise NotFound(f"{name_in(reference)} has been deleted meanwhile.")
    return row
