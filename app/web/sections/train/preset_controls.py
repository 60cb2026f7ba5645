"""Presets in the form: chosen, saved and deleted."""

from __future__ import annotations

from html import escape

import gradio as gr

from app.service.presets import Presets
from app.web.parts.panes import ask_first, bar, close_sheet, sheet
from app.web.parts.shell import FOLLOWING, WORKING, Shell, choose_from, refusal, told
from app.web.sections.train.form import NO_PRESET, TrainForm
from app.web.sections.train.form_values import FormValues
from core.errors import InvalidInput

_DELETE = "Delete this preset? Runs that were started with it keep their options."


def preset_controls(shell: Shell, form: TrainForm) -> None:
    """What the chosen preset is for, a sheet to save the options as one, and a question before one is
    deleted.
    """
    presets = shell.workbench.presets
    with gr.Row(elem_classes="preset-line", visible=False) as line:
        why = gr.HTML("", elem_classes="preset-why")
        with bar() as own:
            deleted = ask_first(
                "delete-preset",
                "Delete preset …",
                _DELETE,
                str,
                lambda asked, _: presets.remove(asked),
                [form.preset],
            )
    with sheet("save-preset", "Save as a preset", "All options of the form, under a name of yours."):
        name = gr.Textbox(value="", label="Name of the preset")
        save = gr.Button("Save preset", variant="primary", size="md")

    @told
    def choose(chosen: str | None, options: str) -> str:
        said = FormValues.read(options)
        given = dict(presets.find(chosen).options) if chosen else {}
        return FormValues(chosen or "", given, {}, said.sweep).write()

    def show(chosen: str | None) -> tuple[object, ...]:
        names = [NO_PRESET, *((one.name, one.name) for one in presets.usable())]
        return choose_from(names, chosen or "", ""), *about(presets, chosen)

    @told
    def keep(wanted: str, options: str) -> tuple[object, ...]:
        said = FormValues.read(options)
        if not wanted.strip():
            raise refusal("Give the preset a name first.")
        presets.save(wanted, said.parsed())
        found = presets.find(wanted.strip())
        names = [NO_PRESET, *((one.name, one.name) for one in presets.usable())]
        now = FormValues(found.name, dict(found.options), {}, said.sweep).write()
        return "", gr.Dropdown(choices=names, value=found.name), now

    shell.refresh(show, [form.preset], [form.preset, line, why, own])
    shell.soon(form.preset.input(choose, [form.preset, form.options], form.options, **FOLLOWING))
    saved = save.click(keep, [name, form.options], [name, form.preset, form.options], **WORKING)
    close_sheet(saved, "save-preset")
    shell.soon(saved)
    shell.soon(deleted)


def about(presets: Presets, chosen: str | None) -> tuple[gr.Row, str, gr.Row]:
    """The line about a preset: what it is for, and whether it can be deleted."""
    try:
        found = presets.find(chosen) if chosen else None
    except InvalidInput:  # deleted meanwhile
        found = None
    own = bool(found and found.own)
    said = (found.why or f"The preset {found.name}") if found else ""
    return gr.Row(visible=bool(found)), escape(said), gr.Row(visible=own)
