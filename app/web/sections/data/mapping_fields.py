"""The fields of a mapping: which column is what, templates, separator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from core.data.formats import DATA_FORMATS
from core.data.mapping import TEMPLATED, DataMapping, all_roles

NONE = ""
_TEMPLATE_HELP = {
    "user": "User's turn, such as: Classify: {text}",
    "assistant": "Assistant's turn, such as: The class is {label}",
    "system": "System prompt, such as: You are brief.",
}


class MappingFields:
    """Lays itself out where it is made. `every` are its fields, in the order of their values."""

    def __init__(self) -> None:
        with gr.Row():
            self.format = gr.Dropdown(format_choices(), value=NONE, label="Format", interactive=True)
            self.like = gr.Dropdown(
                [NONE], value=NONE, label="Or as another data set was read", interactive=True
            )
        self.columns = {role: _column_field(label) for role, label in all_roles().items()}
        gr.HTML(
            "<p class='hint'>A template makes a turn from columns in braces, and goes before the column "
            "chosen above.</p>"
        )
        self.templates = {
            role: gr.Textbox(value="", label=f"Template: {_TEMPLATE_HELP[role]}", lines=1, max_lines=4)
            for role in ("user", "assistant", "system")
        }
        self._separator = gr.Textbox(value="", label="Separator between question and answer, such as ||")
        self._special = gr.Checkbox(
            False,
            label="Special tokens in plain text are meant",
            info="The rows were rendered with a chat template before.",
        )

    @property
    def every(self) -> list[Component]:
        """All that make up the mapping."""
        return [self.format, *self.columns.values(), *self.templates.values(), self._separator, self._special]

    def filled(
        self, mapping: DataMapping | None, columns: Sequence[str] | None = None, begin: str = NONE
    ) -> list[Any]:
        """The fields as a mapping fills them; `columns` are those to choose from, if they change, and `begin`
        the format to begin with where there is no mapping.
        """
        form = mapping.format if mapping else begin
        roles = DATA_FORMATS.get(form).roles if form else ()

        def column(role: str) -> gr.Dropdown:
            value = mapping.columns.get(role, NONE) if mapping else NONE
            if columns is None:
                return gr.Dropdown(value=value, visible=role in roles)
            return gr.Dropdown(value=value, visible=role in roles, choices=[NONE, *columns])

        return [
            form,
            *map(column, self.columns),
            *(mapping.templates.get(role, "") if mapping else "" for role in self.templates),
            mapping.separator if mapping else "",
            mapping.special_tokens if mapping else False,
        ]

    def roles_shown(self, form: str) -> list[Any]:
        """The columns' fields that a format has a use for."""
        roles = DATA_FORMATS.get(form).roles if form else ()
        return [gr.Dropdown(visible=role in roles) for role in self.columns]

    def mapping_of(self, values: Sequence[Any]) -> DataMapping | None:
        """The mapping that the fields' values describe; None while no format is chosen.

        Raises InvalidConfig.
        """
        name, rest = values[0], list(values[1:])
        if not name:
            return None
        form = DATA_FORMATS.get(name)
        columns = {
            role: value
            for role, value in zip(self.columns, rest, strict=False)
            if value and role in form.roles
        }
        rest = rest[len(self.columns) :]
        templates = {
            role: text for role, text in zip(self.templates, rest, strict=False) if text and role in TEMPLATED
        }
        separator, special = rest[len(self.templates) :]
        return DataMapping(
            name,
            columns,
            templates,
            separator if form.separated else "",
            bool(special) and form.may_hold_special_tokens,
        )


def _column_field(label: str) -> gr.Dropdown:
    return gr.Dropdown(
        [NONE], value=NONE, label=label, interactive=True, visible=False, allow_custom_value=True
    )


def format_choices() -> list[tuple[str, str]]:
    """What the mapping's form offers as formats: (as it is shown, its name), and none to begin with."""
    return [(NONE, NONE), *((one.label, one.name) for one in DATA_FORMATS.all().values())]
