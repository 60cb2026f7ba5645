"""Rows that hold a whole conversation: a column of turns. How a turn is spelled is each format's matter."""

from __future__ import annotations

from typing import Any

from core.data.findings import RowFault
from core.data.formats import Convert, DataFormat, Example, Seen
from core.data.formats._cells import (
    beside_columns,
    kwargs_in,
    label_in,
    system_column,
    system_turn,
    tools_in,
)
from core.data.formats._columns import KNOWN, SYSTEMS, TEMPLATE_KWARGS, TOOLS, TURNS
from core.data.mapping import Candidate, DataMapping
from core.data.reading import Row, kind_of
from core.data.turn_keys import ROLE_KEYS, TEXT_KEYS, first_key
from core.data.turns import are_turns, as_list, as_turns, conversation, read_turns


class TurnsFormat(DataFormat):
    """What the formats with a column of turns have in common."""

    keys: tuple[str, str]
    """What a turn calls its role and its text."""
    roles, needed, templates = (
        ("turns", "system", "tools", "template_kwargs", "label"),
        ("turns",),
        ("system",),
    )
    own_roles = (
        ("turns", "Turns"),
        ("tools", "Tools that may be called"),
        ("template_kwargs", "Given to the chat template"),
    )
    optional = (*SYSTEMS, *TOOLS, *TEMPLATE_KWARGS)

    def detect(self, seen: Seen) -> list[Candidate]:
        found = []
        for column in _columns(seen):
            turns = next((turns for row in seen.rows if (turns := as_turns(row.get(column)))), None)
            if turns and self._speaks(turns[0]):
                mapping = DataMapping(
                    self.name, {"turns": column, **system_column(seen), **beside_columns(seen)}
                )
                keys = " and ".join(
                    filter(None, (first_key(turns[0], keys) for keys in (ROLE_KEYS, TEXT_KEYS)))
                )
                found.append(Candidate(mapping, f"column {column!r} holds turns with {keys}"))
        return found

    def _speaks(self, turn: dict[str, Any]) -> bool:
        """Whether a turn is spelled as this format has it."""
        return set(self.keys) <= turn.keys()

    def converter(self, mapping: DataMapping) -> Convert:
        return turns_converter(mapping)


def turns_converter(mapping: DataMapping) -> Convert:
    """For rows whose turns stand in one column, by default `turns`."""
    column = mapping.columns.get("turns", "turns")

    def convert(number: int, row: Row) -> Example:
        turns = as_turns(row.get(column))
        if not turns:
            raise RowFault("missing", _no_turns(column, row.get(column)))
        read, start = read_turns(turns), system_turn(mapping, row)
        silent = frozenset(len(start) + at for at in read.untrained)
        tools = tools_in(mapping, row, read.tools)
        return conversation(
            number,
            [*start, *read.said],
            silent,
            label_in(mapping, row),
            read.notes,
            tools=tools,
            template_kwargs=kwargs_in(mapping, row),
        )

    return convert


def _no_turns(column: str, value: Any) -> str:
    found = "an empty list" if as_list(value) == [] else kind_of(value)
    if isinstance(value, list) and value:
        found = f"a list that holds {kind_of(next(one for one in value if not isinstance(one, dict)))}"
    return f"{column} is {found}; expected a list of turns, each with a role and its text."


def _columns(seen: Seen) -> list[str]:
    """Columns that may hold turns: those that are called so, else those of another name in which nothing but
    turns stands.
    """
    named = [seen.names[name] for name in TURNS if name in seen.names]
    others = [column for name, column in seen.names.items() if name not in KNOWN]
    return named or [
        column
        for column in others
        if seen.rows and all(are_turns(as_turns(row.get(column))) for row in seen.rows[:20])
    ]
