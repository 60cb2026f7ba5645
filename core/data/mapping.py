"""How columns become conversations or text: chosen by detection or by the user, stored with the data set.

Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Mapping as MappingOf
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from core.errors import InvalidConfig

MESSAGES, SHAREGPT, ALPACA = "messages", "sharegpt", "alpaca"
PAIRS, LABELLED, TEXT = "prompt and completion", "text and label", "text"
LINES, LINKED = "separated lines", "linked rows"
FORMATS: dict[str, str] = {
    MESSAGES: "a column of turns with role and content",
    SHAREGPT: "a column of turns with from and value",
    ALPACA: "instruction, input and output",
    PAIRS: "a question and an answer in columns of their own, or put together from columns by templates",
    LABELLED: "a text and its label; the label is the answer",
    TEXT: "plain text, every token of which is trained on",
    LINES: "question and answer in one text, with a separator between them",
    LINKED: "rows that name their parent row; each chain becomes a conversation",
}
ROLES: dict[str, str] = {
    "system": "System prompt",
    "user": "User (question)",
    "assistant": "Assistant (answer)",
    "text": "Text",
    "label": "Label",
    "turns": "Turns",
    "input": "Further input",
    "history": "History",
    "id": "Row's id",
    "parent": "Parent row's id",
    "role": "Role of the turn",
    "content": "Text of the turn",
}
TEMPLATED = ("system", "user", "assistant")
FORMAT_ROLES: dict[str, tuple[str, ...]] = {
    MESSAGES: ("turns", "system", "label"),
    SHAREGPT: ("turns", "system", "label"),
    ALPACA: ("user", "input", "assistant", "system", "history", "label"),
    PAIRS: ("user", "assistant", "system", "label"),
    LABELLED: ("user", "assistant", "label", "system"),
    TEXT: ("text", "label"),
    LINES: ("text", "system"),
    LINKED: ("id", "parent", "role", "content", "user", "assistant", "system"),
}
"""The roles that columns can play in each format."""
_TEMPLATES_OF = {
    PAIRS: TEMPLATED,
    LABELLED: TEMPLATED,
    LINES: ("system", "user"),
    ALPACA: ("system",),
    MESSAGES: ("system",),
    SHAREGPT: ("system",),
}
_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


@dataclass(frozen=True)
class DataMapping:
    """Which column plays which role. `templates` give a role's text with
    {column} fields instead of a column.
    """

    format: str
    columns: MappingOf[str, str] = field(default_factory=dict)
    templates: MappingOf[str, str] = field(default_factory=dict)
    separator: str = ""
    special_tokens: bool = False
    """Whether special tokens in a plain text are meant as such: the rows were rendered with a chat template
    before.
    """

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InvalidConfig(f"There is no format {self.format!r}; known are {', '.join(FORMATS)}.")
        for role in self.columns:
            if role not in ROLES:
                raise InvalidConfig(f"There is no role {role!r}; known are {', '.join(ROLES)}.")
        for role in self.templates:
            if role not in TEMPLATED:
                raise InvalidConfig(f"A template can make {', '.join(TEMPLATED)}, not {role!r}.")
            if not self.templates[role].strip():
                raise InvalidConfig(f"The template for {role} is empty.")
        unused = [role for role in self.columns if role not in FORMAT_ROLES[self.format]]
        unused += [
            f"a template for {role}"
            for role in self.templates
            if role not in _TEMPLATES_OF.get(self.format, ())
        ]
        if unused:
            raise InvalidConfig(
                f"The format {self.format!r} has no use for {' and '.join(unused)}; it takes "
                f"{', '.join(FORMAT_ROLES[self.format])}."
            )
        missing = [
            role for role in _NEEDED[self.format] if role not in self.columns and role not in self.templates
        ]
        if missing:
            raise InvalidConfig(f"The format {self.format!r} needs a column for {' and '.join(missing)}.")
        if self.format == LINES and not self.separator:
            raise InvalidConfig("Separated lines need a separator, such as ||.")
        if self.format == LINKED and not (
            {"role", "content"} <= set(self.columns) or {"user", "assistant"} <= set(self.columns)
        ):
            raise InvalidConfig("Linked rows need columns for role and content, or for user and assistant.")

    @classmethod
    def parse(cls, values: MappingOf[str, Any]) -> Self:
        """From stored or given values. Raises InvalidConfig."""
        unknown = set(values) - set(cls.__dataclass_fields__)
        if unknown:
            raise InvalidConfig(f"A mapping has no field {sorted(unknown)[0]!r}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values in one order, ready for JSON and for hashing."""
        values = asdict(self)
        return values | {key: dict(sorted(values[key].items())) for key in ("columns", "templates")}

    def sentence(self) -> str:
        """The mapping in words."""
        parts = [f"{role} = {column}" for role, column in self.columns.items() if role not in self.templates]
        parts += [f"{role} = “{template}”" for role, template in self.templates.items()]
        parts += [f"separator {self.separator!r}"] if self.separator else []
        return f"{self.format}: {', '.join(parts)}"

    def used_columns(self) -> set[str]:
        """The columns that go into the rows."""
        fields = {name for template in self.templates.values() for name in template_fields(template)}
        return fields | {column for role, column in self.columns.items() if role not in self.templates}


_NEEDED: dict[str, tuple[str, ...]] = {
    MESSAGES: ("turns",),
    SHAREGPT: ("turns",),
    ALPACA: ("user", "assistant"),
    PAIRS: ("user", "assistant"),
    LABELLED: ("user", "assistant"),
    TEXT: ("text",),
    LINES: ("text",),
    LINKED: ("id", "parent"),
}


def template_fields(template: str) -> list[str]:
    """The columns that a template names."""
    return [name for name in _FIELD.findall(template) if name]


def fill(template: str, values: MappingOf[str, str]) -> str:
    """The template with its fields filled in.

    Doubled braces stand for themselves, as in Python's format strings.
    """
    return _FIELD.sub(lambda found: values[found.group(1)] if found.group(1) else found.group()[0], template)


def mapping_of(
    pairs: Iterable[str], templates: Iterable[str] = (), separator: str = "", columns: Iterable[str] = ()
) -> DataMapping | None:
    """A mapping from role=column pairs and templates as people type them; None if nothing was given.

    A template without "role=" in front makes the user's turn. Raises InvalidConfig.
    """
    chosen, made = _once(map(_pair, pairs)), _once(map(_template, templates))
    if not chosen and not made and not separator:
        return None
    known = list(columns)
    for name in [
        *chosen.values(),
        *(name for template in made.values() for name in template_fields(template)),
    ]:
        if known and name not in known:
            raise InvalidConfig(
                f"There is no column {name!r}; the file has {', '.join(map(repr, known[:20]))}. "
                "In a template write {{ for a brace."
            )
    if separator:
        return DataMapping(
            LINES, {"text": "text"} | chosen, made, separator.encode().decode("unicode_escape")
        )
    if (
        "label" in chosen
        and "assistant" not in chosen
        and "assistant" not in made
        and not chosen.keys() & {"turns", "id"}
    ):
        chosen["assistant"] = chosen["label"]  # as detection reads text and label: the label is the answer
        if "text" in chosen:
            chosen["user"] = chosen.pop("text")
    return DataMapping(_format_of(set(chosen) | set(made)), chosen, made)


def _once(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """As a dictionary. Raises InvalidConfig for a role that is given twice."""
    found: dict[str, str] = {}
    for role, value in pairs:
        if role in found:
            raise InvalidConfig(
                f"{role} is given twice: {found[role]!r} and {value!r}; a template can join columns."
            )
        found[role] = value
    return found


def _format_of(roles: set[str]) -> str:
    if "turns" in roles:
        return MESSAGES
    if {"id", "parent"} <= roles:
        return LINKED
    if roles & {"input", "history"}:
        return ALPACA
    return TEXT if "text" in roles and "assistant" not in roles else PAIRS


def _pair(text: str) -> tuple[str, str]:
    role, equals, column = text.partition("=")
    if not equals or not column.strip():
        raise InvalidConfig(
            f"{text!r}: expected role=column, such as user=question. Roles are {', '.join(ROLES)}."
        )
    return role.strip(), column.strip()


def _template(text: str) -> tuple[str, str]:
    role, equals, template = text.partition("=")
    if equals and role in TEMPLATED:
        return role, template
    if equals and role.isidentifier():
        raise InvalidConfig(
            f"{text!r}: a template can make {', '.join(TEMPLATED)}, not {role!r}; put user= in front if "
            "this is the text."
        )
    return "user", text
