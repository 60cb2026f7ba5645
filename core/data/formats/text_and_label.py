"""A text and its label, as for classification: the label is the answer."""

from __future__ import annotations

from core.data.formats import Convert, DataFormat, Seen
from core.data.formats._columns import LABELS, SYSTEMS
from core.data.formats._pairs import pairs_converter
from core.data.mapping import TEMPLATED, Candidate, DataMapping


class TextAndLabel(DataFormat):
    """{"text": "…", "label": "…"}."""

    name, label, order = "text and label", "text and label", 40
    help = "a text and its label; the label is the answer"
    said, expected = "**text and label**", "text and label"
    roles, needed = ("user", "assistant", "label", "system"), ("user", "assistant")
    templates, optional = TEMPLATED, SYSTEMS
    instead_of = ("text",)

    def detect(self, seen: Seen) -> list[Candidate]:
        text, label = seen.names.get("text"), seen.first(LABELS)
        if text is None or label is None:
            return []
        mapping = DataMapping(self.name, {"user": text, "assistant": label, "label": label})
        return [Candidate(mapping, f"columns {text!r} and {label!r}; the label is the answer")]

    def converter(self, mapping: DataMapping) -> Convert:
        return pairs_converter(mapping)


KIND = TextAndLabel()
