"""Question and answer in one text, with a separator between them: a||b."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from core.data.findings import RowFault
from core.data.formats import Convert, DataFormat, Example, plain_turn
from core.data.formats._cells import system_turn, text_in
from core.data.formats._columns import SYSTEMS
from core.data.mapping import Candidate, DataMapping, fill
from core.data.reading import Row
from core.data.turns import conversation
from core.errors import InvalidConfig

_SEPARATORS = ("||", "\t", "=>", "###")
_SEPARATED_SHARE = 0.9


class SeparatedLines(DataFormat):
    """Lines of a plain text, or one column of a table."""

    name, label, order = "separated lines", "separated lines", 50
    help = "question and answer in one text, with a separator between them"
    said = "**a||b** lines"
    roles, needed, templates = ("text", "system"), ("text",), ("system", "user")
    optional = SYSTEMS
    separated = by_line = True

    def check(self, mapping: DataMapping) -> None:
        if not mapping.separator:
            raise InvalidConfig("Separated lines need a separator, such as ||.")

    def detect_lines(self, lines: Sequence[str]) -> list[Candidate]:
        found = []
        for separator in _SEPARATORS:
            share = sum(line.count(separator) == 1 for line in lines) / len(lines)
            if share >= _SEPARATED_SHARE and len(lines) > 1:
                mapping = DataMapping(self.name, {"text": "text"}, separator=separator)
                found.append(Candidate(mapping, f"{share:.0%} of the lines hold {separator!r} once"))
        return found

    def converter(self, mapping: DataMapping) -> Convert:
        column = mapping.columns["text"]

        def convert(number: int, row: Row) -> Example:
            asked, separator, answered = text_in(row, column).partition(mapping.separator)
            if not separator:
                raise RowFault("missing", f"The separator {mapping.separator!r} is not in the line.")
            twice = ("separator", f"The line holds {mapping.separator!r} more than once.")
            notes = (twice,) if mapping.separator in answered else ()
            asked, answered = asked.strip(), answered.strip()
            if "user" in mapping.templates:
                asked = fill(mapping.templates["user"], {column: asked})
            turns = [*system_turn(mapping, row), plain_turn("user", asked), plain_turn("assistant", answered)]
            return replace(conversation(number, turns), notes=notes)

        return convert


KIND = SeparatedLines()
