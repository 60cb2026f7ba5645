"""Form fields built from the configuration dataclasses, one for each option."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr
from gradio.components import Component

from core.options import Option


def option_field(option: Option) -> Component:
    """The input for one option, with its label, help, unit and range."""
    unit_said = not option.unit or option.unit in option.label.lower()
    label = option.label if unit_said else f"{option.label} ({option.unit})"
    if option.listed:
        return gr.Dropdown(
            list(option.listed), value=option.default, label=label, info=option.help, interactive=True
        )
    if option.kind is bool:
        return gr.Checkbox(value=option.default, label=label, info=option.help, interactive=True)
    if option.kind is str:
        return gr.Textbox(
            value=option.default, label=label, info=option.help, interactive=True, lines=option.lines
        )
    precision = 0 if option.kind is int else None
    return gr.Number(
        value=option.default, label=label, info=option.help, precision=precision, interactive=True
    )


def option_fields(options: Sequence[Option], per_row: int) -> dict[str, Component]:
    """Inputs for several options, laid out in rows; by the options' names."""
    fields: dict[str, Component] = {}
    for start in range(0, len(options), per_row):
        with gr.Row(equal_height=True):
            for option in options[start : start + per_row]:
                fields[option.name] = option_field(option)
    return fields
