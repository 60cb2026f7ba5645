"""Question and answer in columns of their own: what the formats with two sides have in common."""

from __future__ import annotations

from core.data.formats import Convert, Example
from core.data.formats._cells import Turn, filled, label_in, system_turn, text_in
from core.data.mapping import DataMapping
from core.data.reading import Row
from core.data.turns import as_turns, content, conversation, speaker


def pairs_converter(mapping: DataMapping) -> Convert:
    """For rows with a column or a template for the user's side and one for the assistant's."""

    def convert(number: int, row: Row) -> Example:
        turns = [
            *system_turn(mapping, row),
            *_side(mapping, row, "user"),
            *_side(mapping, row, "assistant"),
        ]
        return conversation(number, turns, label=label_in(mapping, row))

    return convert


def _side(mapping: DataMapping, row: Row, role: str) -> list[Turn]:
    """One side of prompt and completion: a template filled in, a text, or a list of messages."""
    if role in mapping.templates:
        return [(role, filled(mapping.templates[role], row))]
    column = mapping.columns[role]
    turns = as_turns(row.get(column)) if not isinstance(row.get(column), str) else None
    if turns:
        return [(speaker(turn), content(turn)) for turn in turns]
    return [(role, text_in(row, column))]
