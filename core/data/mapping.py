"""How columns become conversations or text: chosen by detection or by the user, stored with the data set.

Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Mapping as MappingOf
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from core.data.formats import DATA_FORMATS, DataFormat
from core.errors import InvalidConfig

ROLES: dict[str, str] = {
    "system": "System prompt",
    "user": "User (question)",
    "assistant": "Assistant (answer)",
    "text": "Text",
    "label": "Label",
}
"""Roles that columns play in several formats, with their labels; all_roles() adds those of single ones."""
TEMPLATED = ("system", "user", "assistant")
_BY_DEFAULT = "prompt and completion"
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
        form, roles = DATA_FORMATS.get(self.format), all_roles()
        for role in self.columns:
            if role not in roles:
                raise InvalidConfig(f"There is no role {role!r}; known are {', '.join(roles)}.")
        for role in self.templates:
            if role not in TEMPLATED:
                raise InvalidConfig(f"A template can make {', '.join(TEMPLATED)}, not {role!r}.")
            if not self.templates[role].strip():
                raise InvalidConfig(f"The template for {role} is empty.")
        unused = [role for role in self.columns if role not in form.roles]
        unused += [f"a template for {role}" for role in self.templates if role not in form.templates]
        if unused:
            raise InvalidConfig(
                f"The format {self.format!r} has no use for {' and '.join(unused)}; it takes "
                f"{', '.join(form.roles)}."
            )
        missing = [role for role in form.needed if role not in self.columns and role not in self.templates]
        if missing:
            raise InvalidConfig(f"The format {self.format!r} needs a column for {' and '.join(missing)}.")
        form.check(self)

    @property
    def data_format(self) -> DataFormat:
        """The format itself, which does the work."""
        return DATA_FORMATS.get(self.format)

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


@dataclass(frozen=True)
class Candidate:
    """A mapping that fits, and what it was seen by. A doubtful one is taken only when the user says so."""

    mapping: DataMapping
    reason: str
    doubtful: bool = False


def all_roles() -> dict[str, str]:
    """Every role that columns play in some format, with its label, in the order in which they are shown."""
    return ROLES | dict(role for form in DATA_FORMATS.all().values() for role in form.own_roles)


def template_fields(template: str) -> list[str]:
    """The columns that a template names."""
    return [name for name in _FIELD.findall(template) if name]


def fill(template: str, values: MappingOf[str, str]) -> str:
    """The template with its fields filled in.

    Doubled braces stand for themselves, as in Python's format strings.
    """
    return _FIELD.sub(lambda found: values[found.group(1)] if found.group(1) else found.group()[0], template)


def is_bare(template: str) -> bool:
    """Whether a template is several columns with nothing but white space between them."""
    return (
        len(template_fields(template)) > 1 and not _FIELD.sub("", template).strip() and "{{" not in template
    )


def without_fields(template: str, names: set[str]) -> str:
    """A bare template without these fields, and without the white space before them, or behind the first."""
    if not names:
        return template
    pieces = [piece for piece in re.split(r"(?=\s*\{)(?<=\})", template) if piece]
    return "".join(piece for piece in pieces if not set(template_fields(piece)) & names).lstrip()


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
        form = next(one for one in DATA_FORMATS.all().values() if one.separated)
        return DataMapping(form.name, {"text": "text"} | chosen, made, _unescaped(separator))
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


def _unescaped(text: str) -> str:
    """A separator as typed, with \\t, \\n and the like for what they stand for in Python; a backslash that
    begins nothing of the kind stands for itself.
    """
    try:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError:
        return text


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
    meant = (form.name for form in DATA_FORMATS.all().values() if form.is_meant_by(roles))
    return next(meant, _BY_DEFAULT)


def _pair(text: str) -> tuple[str, str]:
    role, equals, column = text.partition("=")
    if not equals or not column.strip():
        raise InvalidConfig(
            f"{text!r}: expected role=column, such as user=question. Roles are {', '.join(all_roles())}."
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
