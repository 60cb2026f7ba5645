"""Plain text, to go on from."""

from __future__ import annotations

from collections.abc import Sequence

from core.data.findings import RowFault
from core.data.formats import Convert, DataFormat, Example, Seen
from core.data.formats._cells import label_in, text_in
from core.data.mapping import Candidate, DataMapping
from core.data.reading import Row


class PlainText(DataFormat):
    """A column of texts, or a whole file of text."""

    name, label, order = "text", "text", 70
    help = "plain text, every token of which is trained on"
    said, expected = "raw **text**", "text"
    roles, needed = ("text", "label"), ("text",)
    may_hold_special_tokens = True

    def is_meant_by(self, roles: set[str]) -> bool:
        return "text" in roles and "assistant" not in roles

    def detect(self, seen: Seen) -> list[Candidate]:
        if "text" not in seen.names:
            return []
        mapping = DataMapping(self.name, {"text": seen.names["text"]})
        return [Candidate(mapping, "column 'text'; every token is trained on")]

    def detect_lines(self, lines: Sequence[str]) -> list[Candidate]:
        return [
            Candidate(DataMapping(self.name, {"text": "text"}), "a plain text; every token is trained on")
        ]

    def converter(self, mapping: DataMapping) -> Convert:
        column = mapping.columns["text"]

        def convert(number: int, row: Row) -> Example:
            text = text_in(row, column)
            if not text.strip():
                raise RowFault("empty_answer", "The text is empty.")
            return Example(number, text=text, label=label_in(mapping, row))

        return convert


KIND = PlainText()
