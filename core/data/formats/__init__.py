"""Data formats: how rows of columns become conversations or text. Each is one file here; see core/seam.py.

A format says which columns it is seen by and what an Example is made of; it needs no torch. Modules whose
names begin with an underscore are what several formats use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.data.reading import NumberedRows, Row
from core.seam import Seam

if TYPE_CHECKING:
    from core.data.mapping import Candidate, DataMapping

Message = dict[str, Any]
"""A turn: "role" and "content"; where there is any, "reasoning" (what an answer thought before it),
"tool_calls" (see core/data/tool_calls.py), "name", and of a tool's result the "tool_call_id".
"""


def plain_turn(role: str, content: str) -> Message:
    """A turn of nothing but text."""
    return {"role": role, "content": content}


@dataclass(frozen=True)
class Example:
    """One training row: either a conversation or plain text."""

    row: int
    messages: tuple[Message, ...] = ()
    text: str = ""
    untrained: frozenset[int] = frozenset()
    """Places of assistant turns that carry no loss, as their weight says."""
    label: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    """Definitions of what may be called."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What the chat template is given for this row beside its turns and tools."""
    notes: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """(code, sentence) of what was left aside when the row was made; not stored with it."""


Convert = Callable[[int, Row], Example]


@dataclass(frozen=True)
class Seen:
    """The first rows of a file that is no plain text, for formats to be told by."""

    columns: tuple[str, ...]
    """All columns, as the file spells them."""
    names: Mapping[str, str]
    """Those that most rows have, or that are optional, by their names in lower case without blanks around."""
    rows: Sequence[Row]

    def first(self, wanted: Sequence[str]) -> str | None:
        """The first of the wanted columns that is there, as the file spells it."""
        return next((self.names[name] for name in wanted if name in self.names), None)


class DataFormat:
    """The head of a data format, and its duties."""

    name: str
    label: str
    help: str
    order: int = 100
    said: str = ""
    """As the page lists it among what is recognised, in Markdown; empty: its label."""
    expected: str = ""
    """The columns it is seen by, for the sentence on a file that nothing fits; "; " between several."""

    roles: tuple[str, ...]
    """What columns can be in it, as the mapping's form and --map offer them."""
    own_roles: tuple[tuple[str, str], ...] = ()
    """Those of its roles that are not in mapping.ROLES, with their labels."""
    needed: tuple[str, ...]
    """Roles without which there is no row."""
    templates: tuple[str, ...] = ()
    """Roles that a template can make instead of a column: some of mapping.TEMPLATED."""
    separated: bool = False
    """Whether a mapping needs a separator, which stands in each text."""
    by_line: bool = False
    """Whether each line of a plain text is a row, rather than a document."""
    may_hold_special_tokens: bool = False
    """Whether texts may have been rendered with a chat template before."""

    columns: tuple[str, ...] = ()
    """Names of columns that it is seen by beside those in _columns.py; what is almost one of them is pointed
    out.
    """
    optional: tuple[str, ...] = ()
    """Columns that it takes where they are there, so that it matters if they are left aside."""
    instead_of: tuple[str, ...] = ()
    """Formats that are not meant where this one fits without doubt."""

    def check(self, mapping: DataMapping) -> None:
        """Raise InvalidConfig for what roles alone do not say."""

    def is_meant_by(self, roles: set[str]) -> bool:
        """Whether somebody who says which columns play these roles means this format."""
        return bool(roles & {role for role, _ in self.own_roles})

    def detect(self, seen: Seen) -> list[Candidate]:
        """Mappings that fit rows such as these, and what they were seen by."""
        return []

    def detect_lines(self, lines: Sequence[str]) -> list[Candidate]:
        """Mappings that fit a plain text with such lines, of which there is at least one."""
        return []

    def guess(self, seen: Seen) -> list[Candidate]:
        """Doubtful mappings, for rows that no format fits."""
        return []

    def hints(self, seen: Seen) -> list[str]:
        """Sentences for people about what stands in the rows and cannot be used."""
        return []

    def gather(self, rows: NumberedRows, mapping: DataMapping) -> NumberedRows:
        """The rows that are converted, where one is made of several rows of the file. Raises InvalidData."""
        return rows

    def converter(self, mapping: DataMapping) -> Convert:
        """The function that makes an Example of a row; it raises RowFault."""
        raise NotImplementedError


DATA_FORMATS: Seam[DataFormat] = Seam("core.data.formats", DataFormat, "data format")
