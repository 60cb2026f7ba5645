"""Rows that name their parent row, put together into conversations: one for each row that nobody answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from core.data.formats import Convert, DataFormat, Seen
from core.data.formats._columns import ANSWERS, IDS, PARENTS, QUESTIONS, SYSTEMS
from core.data.formats._turns import turns_converter
from core.data.mapping import Candidate, DataMapping
from core.data.reading import BadRow, NumberedRows, Row
from core.data.turn_keys import is_nothing
from core.errors import InvalidConfig, InvalidData

_WHOLE = re.compile(r"(?<=\d)\.0$")
_MOST_ROWS = 2_000_000  # they are held in memory, since a parent may stand anywhere in the file


class LinkedRows(DataFormat):
    """{"id": 2, "parent_id": 1, "role": "assistant", "text": "…"}, as in OpenAssistant's conversations."""

    name, label, order = "linked rows", "linked rows", 60
    help = "rows that name their parent row; each chain becomes a conversation"
    said = "linked rows"
    roles = ("id", "parent", "role", "content", "user", "assistant", "system")
    own_roles = (
        ("id", "Row's id"),
        ("parent", "Parent row's id"),
        ("role", "Role of the turn"),
        ("content", "Text of the turn"),
    )
    needed, optional = ("id", "parent"), SYSTEMS
    instead_of = ("alpaca", "prompt and completion", "text and label", "text")

    def check(self, mapping: DataMapping) -> None:
        if not ({"role", "content"} <= set(mapping.columns) or {"user", "assistant"} <= set(mapping.columns)):
            raise InvalidConfig("Linked rows need columns for role and content, or for user and assistant.")

    def is_meant_by(self, roles: set[str]) -> bool:
        return {"id", "parent"} <= roles

    def detect(self, seen: Seen) -> list[Candidate]:
        own, parent = seen.first(IDS), seen.first(PARENTS)
        if own is None or parent is None:
            return []
        role, content = seen.names.get("role"), seen.first(("text", "content", "value"))
        question, answer = seen.first(QUESTIONS), seen.first(ANSWERS)
        if role and content:
            said = {"role": role, "content": content}
        elif question and answer:
            said = {"user": question, "assistant": answer}
        else:
            return []
        mapping = DataMapping(self.name, {"id": own, "parent": parent, **said})
        return [Candidate(mapping, f"rows name their parent in {parent!r}")]

    def gather(self, rows: NumberedRows, mapping: DataMapping) -> NumberedRows:
        return _conversations(rows, mapping)

    def converter(self, mapping: DataMapping) -> Convert:
        return turns_converter(mapping)


KIND = LinkedRows()


def _conversations(rows: NumberedRows, mapping: DataMapping) -> NumberedRows:
    """Yield (number of the last row, {"turns": [...]}) for each chain from a root to a leaf.

    A row whose parent is missing, or that is its own ancestor, comes out as a BadRow. Raises InvalidData
    beyond 2,000,000 rows.
    """
    own, parent = mapping.columns["id"], mapping.columns["parent"]
    kept: dict[str, tuple[int, Row]] = {}
    answered: set[str] = set()
    for number, row in rows:
        key = "" if isinstance(row, BadRow) else _id(row.get(own))
        if isinstance(row, BadRow):
            yield number, row
        elif not key:
            yield number, BadRow("missing", f"{own} is missing; linked rows need one each.")
        elif key in kept:
            yield number, BadRow("unreadable", f"The id {key[:40]!r} is row {kept[key][0]}'s already.")
        else:
            kept[key] = (number, row)
            if above := _id(row.get(parent)):
                answered.add(above)
        if len(kept) > _MOST_ROWS:
            raise InvalidData(
                f"Linked rows are put together in memory; more than {_MOST_ROWS:,} of them cannot be read."
            )
    yield from _chains(kept, answered, parent, mapping)


def _id(value: Any) -> str:
    """An id as text, empty where there is none. Tables that lack some hold whole numbers as 1.0."""
    if is_nothing(value):
        return ""
    return _WHOLE.sub("", str(value).strip())


def _chains(
    kept: dict[str, tuple[int, Row]], answered: set[str], parent: str, mapping: DataMapping
) -> NumberedRows:
    reached: set[str] = set()
    for key, (number, _) in kept.items():
        if key in answered:
            continue
        chain = list(_ancestors(key, kept, parent))
        reached.update(one for one in chain if one in kept)
        if chain[-1] in kept and _id(kept[chain[-1]][1].get(parent)):
            yield number, BadRow("unreadable", "One of the rows above it is its own ancestor.")
            continue
        if chain[-1] not in kept:
            yield number, BadRow("missing", f"The parent {chain[-1][:40]!r} is not in the file.")
            continue
        turns = [turn for one in reversed(chain) for turn in _turns(kept[one][1], mapping)]
        yield number, {"turns": turns, **_system(kept[chain[-1]][1], mapping)}
    for key, (number, _) in kept.items():
        if key not in reached:
            yield number, BadRow("unreadable", "The row is its own ancestor.")


def _ancestors(key: str, kept: dict[str, tuple[int, Row]], parent: str) -> Iterator[str]:
    """The row, its parent, and so on to the root; a name that is not in the file ends the chain."""
    seen = set()
    while key not in seen:
        seen.add(key)
        yield key
        above = _id(kept[key][1].get(parent)) if key in kept else ""
        if not above:
            return
        key = above


def _turns(row: Row, mapping: DataMapping) -> list[dict[str, Any]]:
    columns = mapping.columns
    if "content" in columns:
        return [{"role": row.get(columns["role"]), "content": row.get(columns["content"])}]
    return [{"role": role, "content": row.get(columns[role])} for role in ("user", "assistant")]


def _system(row: Row, mapping: DataMapping) -> Row:
    column = mapping.columns.get("system")
    return {column: row[column]} if column and row.get(column) else {}
