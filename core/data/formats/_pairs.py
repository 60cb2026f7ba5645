"""Question and answer in columns of their own: what the formats with two sides have in common."""

from __future__ import annotations

from core.data.formats import Convert, Example
from core.data.formats._cells import filled, label_in, system_turn, text_in
from core.data.mapping import DataMapping
from core.data.reading import Row
from core.data.turns import Turns, are_turns, as_list, as_turns, conversation, read_turns


def pairs_converter(mapping: DataMapping) -> Convert:
    """For rows with a column or a template for the user's side and one for the assistant's."""

    def convert(number: int, row: Row) -> Example:
        start, asked, answered = (
            system_turn(mapping, row),
            _side(mapping, row, "user"),
            _side(mapping, row, "assistant"),
        )
        before = len(start) + len(asked.said)
        # what stands in the prompt is given; only the completion is learnt
        given = {len(start) + at for at, (role, _) in enumerate(asked.said) if role == "assistant"}
        silent = frozenset(given | {before + at for at in answered.untrained})
        turns = [*start, *asked.said, *answered.said]
        return conversation(number, turns, silent, label_in(mapping, row), (*asked.notes, *answered.notes))

    return convert


def _side(mapping: DataMapping, row: Row, role: str) -> Turns:
    """One side of prompt and completion: a template filled in, a text, or a list of messages."""
    if role in mapping.templates:
        return Turns(((role, filled(mapping.templates[role], row)),))
    column = mapping.columns[role]
    turns = as_list(row.get(column))
    if are_turns(turns) or (isinstance(turns, list) and turns is row.get(column) and as_turns(turns)):
        return read_turns(turns)
    return Turns(((role, text_in(row, column)),))
