"""What a mapping makes of a row's cells: a text, a filled template, the system prompt, the label."""

from __future__ import annotations

import math

from core.data.findings import RowFault
from core.data.formats import Seen
from core.data.formats._columns import SYSTEMS
from core.data.mapping import DataMapping, fill, template_fields
from core.data.reading import Row, kind_of

Turn = tuple[str, str]
"""Role and text."""


def text_in(row: Row, column: str) -> str:
    """A cell as text; numbers are written out. Raises RowFault for anything else."""
    value = row.get(column)
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise RowFault("missing", f"{column} is missing: {value} is no value; expected text.")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowFault("missing", f"{column} is {kind_of(value)}; expected text.")
    return str(value)


def filled(template: str, row: Row) -> str:
    """A template with a row's cells in it. Raises RowFault."""
    return fill(template, {name: text_in(row, name) for name in template_fields(template)})


def label_in(mapping: DataMapping, row: Row) -> str:
    """What the row is counted under; empty if nothing says so."""
    column = mapping.columns.get("label")
    value = row.get(column) if column else None
    return str(value)[:200] if isinstance(value, (str, int, float)) else ""


def system_turn(mapping: DataMapping, row: Row) -> list[Turn]:
    """The system prompt's turn, if the mapping gives one and the row has it. Raises RowFault."""
    if "system" in mapping.templates:
        return [("system", filled(mapping.templates["system"], row))]
    column = mapping.columns.get("system")
    return [("system", text_in(row, column))] if column and row.get(column) not in (None, "") else []


def system_column(seen: Seen) -> dict[str, str]:
    """The mapping's part for a column that looks like a system prompt."""
    column = seen.first(SYSTEMS)
    return {"system": column} if column else {}
