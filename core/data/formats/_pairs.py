"""Question and answer in columns of their own: what the formats with two sides have in common."""

from __future__ import annotations

from core.data.formats import Convert, Example, plain_turn
from core.data.formats._cells import (
    filled,
    kwargs_in,
    label_in,
    system_turn,
    text_in,
    tools_in,
    written_label,
)
from core.data.mapping import DataMapping
from core.data.reading import Row
from core.data.turns import Turns, are_turns, as_list, as_turns, conversation, read_turns


def pairs_converter(mapping: DataMapping) -> Convert:
    """For rows with a column or a template for the user's side and one for the assistant's."""
    answer = mapping.columns.get("assistant")
    is_label = answer is not None and answer == mapping.columns.get("label")

    def convert(number: int, row: Row) -> Example:
        if answer is not None and is_label:
            row = {**row, answer: written_label(row.get(answer))}
        start, asked, answered = (
            system_turn(mapping, row),
            _side(mapping, row, "user"),
            _side(mapping, row, "assistant"),
        )
        before = len(start) + len(asked.said)
        # what stands in the prompt is given; only the completion is learnt
        given = {len(start) + at for at, turn in enumerate(asked.said) if turn["role"] == "assistant"}
        silent = frozenset(given | {before + at for at in answered.untrained})
        turns = [*start, *asked.said, *answered.said]
        return conversation(
            number,
            turns,
            silent,
            label_in(mapping, row),
            (*asked.notes, *answered.notes),
            tools=tools_in(mapping, row, (*asked.tools, *answered.tools)),
            template_kwargs=kwargs_in(mapping, row),
        )

    return convert


def _side(mapping: DataMapping, row: Row, role: str) -> Turns:
    """One side of prompt and completion: a template filled in, a text, or a list of messages."""
    if role in mapping.templates:
        return Turns((plain_turn(role, filled(mapping.templates[role], row)),))
    column = mapping.columns[role]
    turns = as_list(row.get(column))
    if are_turns(turns) or (isinstance(turns, list) and turns is row.get(column) and as_turns(turns)):
        return read_turns(turns)
    return Turns((plain_turn(role, text_in(row, column)),))
