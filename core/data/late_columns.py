"""Columns that none of the rows had by which the mapping was judged: they begin later in the file, or in
another file. What they hold is judged here, as it would have been there. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from core.data.formats import Seen
from core.data.left_out import left_out_hint, text_left_out
from core.data.mapping import Candidate, DataMapping
from core.data.preferences import preferences_hint, preferences_in
from core.data.reading import Row
from core.data.turn_keys import is_nothing

_LOOKED_AT = 50  # rows that have a value there
_MOST_COLUMNS = 200  # the rest is only listed among what is not used


@dataclass(frozen=True)
class Late:
    """A column of rows that judge answers, or of text that is left out."""

    column: str
    where: str
    """The first row that has it, such as "row 201 of a.jsonl"."""
    said: str
    """What a person is told of it."""
    judges: bool
    """Whether the rows are preferences by it; else it holds text."""


class LateColumns:
    """Takes the rows as they are read, and says then which of these columns matter."""

    def __init__(self, mapping: DataMapping, judged: Collection[Row]) -> None:
        """judged: the rows that the mapping was judged by."""
        self._mapping, self._used = mapping, mapping.used_columns()
        held = {key for row in judged for key, value in row.items() if not is_nothing(value)}
        self._judged, self._known = bool(judged), held | self._used
        self._rows: dict[str, list[Row]] = {}
        self._where: dict[str, str] = {}

    def skips(self, column: str) -> bool:
        """Whether nothing is to be learnt of a column: it has no use, and was judged then, or nothing could
        be.
        """
        return column not in self._used and (column in self._known or not self._judged)

    def take(self, row: Row, number: int, name: str) -> None:
        """Look at row `number` of the file of this name."""
        if row.keys() <= self._known:
            return
        for column, value in row.items():
            if column in self._known or is_nothing(value):
                continue
            if column not in self._rows:
                if len(self._rows) == _MOST_COLUMNS:
                    continue
                self._rows[column], self._where[column] = [], f"row {number} of {name}"
            if len(self._rows[column]) < _LOOKED_AT:
                self._rows[column].append(row)

    def matter(self) -> Iterator[Late]:
        """Those that a person would have been asked about."""
        candidate = Candidate(self._mapping, "")
        for column, rows in self._rows.items():
            seen = self._seen(rows)
            if why := preferences_in(seen, [candidate]):
                yield Late(column, self._where[column], preferences_hint(why, offered=False), True)
            elif column in text_left_out(seen, candidate):
                yield Late(column, self._where[column], left_out_hint([column]), False)

    def _seen(self, rows: list[Row]) -> Seen:
        """These rows without what was judged before and has no use."""
        wanted = self._used | self._rows.keys()
        kept = [{key: value for key, value in row.items() if key in wanted} for row in rows]
        columns = tuple(dict.fromkeys(key for row in kept for key in row))
        return Seen(columns, {column.strip().lower(): column for column in columns}, kept)
