"""What a mapping makes of a row's cells: a text, a filled template, the system prompt, the label."""

from __future__ import annotations

import json
import math
from typing import Any

from core.data.findings import RowFault
from core.data.formats import Message, Seen, plain_turn
from core.data.formats._columns import SYSTEMS, TEMPLATE_KWARGS, TOOLS
from core.data.mapping import DataMapping, fill, is_bare, template_fields, without_fields
from core.data.reading import Row, kind_of
from core.data.tool_calls import Tool, parsed, read_tools
from core.data.turn_keys import is_nothing


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


def cell_of(mapping: DataMapping, row: Row, role: str) -> Any:
    """What the row holds for a role; None where the mapping has no column for it. A column may be called ''
    too, as pandas calls the index that it writes into a CSV file.
    """
    column = mapping.columns.get(role)
    return None if column is None else row.get(column)


def filled(template: str, row: Row) -> str:
    """A template with a row's cells in it; where it is nothing but columns, those that are empty leave no
    blank lines, and a context or further input may be missing. Raises RowFault.
    """
    fields = template_fields(template)
    if not is_bare(template):
        return fill(template, {name: text_in(row, name) for name in fields})
    kept = [name for name in fields if not _may_fail(name, row.get(name))] or fields
    return fill(
        without_fields(template, set(fields) - set(kept)), {name: text_in(row, name) for name in kept}
    )


def _may_fail(column: str, value: Any) -> bool:
    return is_nothing(value) and (isinstance(value, str) or column.strip().lower() in ("context", "input"))


def label_in(mapping: DataMapping, row: Row) -> str:
    """What the row is counted under; empty if nothing says so."""
    column = mapping.columns.get("label")
    value = row.get(column) if column else None
    return str(value).strip()[:200] if isinstance(value, (str, int, float)) else ""


def written_label(value: Any) -> Any:
    """A label that is yes or no, or a list of texts, written out as JSON; anything else as it is."""
    is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
    return json.dumps(value, ensure_ascii=False) if is_list or isinstance(value, bool) else value


def system_turn(mapping: DataMapping, row: Row) -> list[Message]:
    """The system prompt's turn, if the mapping gives one and the row has it. Raises RowFault."""
    if "system" in mapping.templates:
        return [plain_turn("system", filled(mapping.templates["system"], row))]
    column = mapping.columns.get("system")
    return [plain_turn("system", text_in(row, column))] if column and not is_nothing(row.get(column)) else []


def tools_in(mapping: DataMapping, row: Row, in_turns: tuple[Tool, ...] = ()) -> tuple[Tool, ...]:
    """The definitions of tools beside the turns, or those that the turns themselves hold. Raises RowFault,
    also where the two differ.
    """
    value = cell_of(mapping, row, "tools")
    beside = () if is_nothing(value) or value == "[]" else read_tools(value)
    if beside and in_turns and beside != in_turns:
        raise RowFault(
            "tools",
            f"The system turn defines {_named(in_turns)}, the column {_named(beside)}, and they "
            "differ; define the tools in one of them.",
        )
    return beside or in_turns


def _named(tools: tuple[Tool, ...]) -> str:
    return ", ".join(tool["function"]["name"] for tool in tools[:5])


def kwargs_in(mapping: DataMapping, row: Row) -> dict[str, Any]:
    """What the row gives its chat template. Raises RowFault."""
    value = cell_of(mapping, row, "template_kwargs")
    found = {} if is_nothing(value) else parsed(value)
    if not isinstance(found, dict):
        raise RowFault("missing", f"What the chat template is given is {kind_of(found)}; expected an object.")
    return {key: one for key, one in found.items() if one is not None}


def beside_columns(seen: Seen) -> dict[str, str]:
    """The mapping's part for columns that look like tools and like what the chat template is given."""
    named = {"tools": seen.first(TOOLS), "template_kwargs": seen.first(TEMPLATE_KWARGS)}
    return {role: column for role, column in named.items() if column and _holds_data(seen, column)}


def _holds_data(seen: Seen, column: str) -> bool:
    """Whether what stands in a column is lists and objects, or JSON of them, and anything at all."""
    values = [parsed(row[column]) for row in seen.rows if not is_nothing(row.get(column))]
    return bool(values) and all(isinstance(one, (list, dict)) for one in values)


def system_column(seen: Seen) -> dict[str, str]:
    """The mapping's part for a column that looks like a system prompt."""
    column = seen.first(SYSTEMS)
    return {"system": column} if column else {}
