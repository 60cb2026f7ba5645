"""Rows that hold a whole conversation: a column of turns. How a turn is spelled is each format's matter."""

from __future__ import annotations

from dataclasses import replace

from core.data.findings import RowFault
from core.data.formats import Convert, DataFormat, Example, Seen
from core.data.formats._cells import label_in, system_column, system_turn
from core.data.formats._columns import SYSTEMS, TURNS
from core.data.mapping import Candidate, DataMapping
from core.data.reading import Row, kind_of
from core.data.turns import BESIDE, as_turns, content, conversation, is_trained, speaker


class TurnsFormat(DataFormat):
    """What the formats with a column of turns have in common."""

    keys: tuple[str, str]
    """What a turn calls its role and its text."""
    roles, needed, templates = ("turns", "system", "label"), ("turns",), ("system",)
    optional = SYSTEMS

    def detect(self, seen: Seen) -> list[Candidate]:
        found = []
        for column in (seen.names[name] for name in TURNS if name in seen.names):
            turns = next((turns for row in seen.rows if (turns := as_turns(row.get(column)))), None)
            if turns and set(self.keys) <= set(turns[0]):
                mapping = DataMapping(self.name, {"turns": column, **system_column(seen)})
                found.append(
                    Candidate(mapping, f"column {column!r} holds turns with {' and '.join(self.keys)}")
                )
        return found

    def converter(self, mapping: DataMapping) -> Convert:
        return turns_converter(mapping)


def turns_converter(mapping: DataMapping) -> Convert:
    """For rows whose turns stand in one column, by default `turns`."""
    column = mapping.columns.get("turns", "turns")

    def convert(number: int, row: Row) -> Example:
        turns = as_turns(row.get(column))
        if not turns:
            found = "an empty list" if row.get(column) == [] else kind_of(row.get(column))
            raise RowFault(
                "missing", f"{column} is {found}; expected a list of turns, each with a role and its text."
            )
        pairs = [(speaker(turn), content(turn)) for turn in turns]
        start = system_turn(mapping, row)
        silent = frozenset(len(start) + at for at, turn in enumerate(turns) if not is_trained(turn))
        notes = tuple(
            ("ignored_part", f"The {key} of turn {at} are not used.")
            for at, turn in enumerate(turns, 1)
            for key in BESIDE
            if turn.get(key)
        )
        made = conversation(number, [*start, *pairs], silent, label_in(mapping, row))
        return replace(made, notes=notes) if notes else made

    return convert
