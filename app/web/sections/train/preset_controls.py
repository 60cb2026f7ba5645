"""Presets in the form: chosen, saved and deleted."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from app.web.parts.shell import QUIET, WORKING, Shell, choose_from, refusal, told
from app.web.sections.train.form import TrainForm
from app.web.sections.train.form_values import parsed


def bind_presets(shell: Shell, form: TrainForm) -> None:
    """Bind the fields and buttons about presets."""
    presets, fields = shell.workbench.presets, list(form.options.values())

    def names() -> list[str]:
        return [one.name for one in presets.usable()]

    def choices(chosen: str | None = None) -> gr.Dropdown:
        return gr.Dropdown(choices=names(), value=chosen)

    @told
    def choose(name: str | None) -> list[object]:
        if not name:
            return ["", *[gr.skip()] * len(fields)]
        found = presets.find(name)
        return [f"<p class='hint'>{escape(found.why)}</p>", *form.values(found.options)]

    @told
    def save(name: str, **values: Any) -> tuple[object, ...]:
        presets.save(name, parsed(values))
        return "", choices(name.strip()), ""

    @told
    def forget(name: str | None) -> tuple[object, ...]:
        if not name:
            raise refusal("Choose the preset to delete first, at the top.")
        presets.remove(name)
        return choices(), ""

    shell.refresh(lambda now: choose_from(names(), now, None), [form.preset], [form.preset])
    form.preset.input(choose, form.preset, [form.why, *fields], **QUIET)
    form.save.click(
        save,
        None,
        [form.save_name, form.preset, form.why],
        inputs_kwargs={"name": form.save_name, **form.options},
        **WORKING,
    )
    form.forget.click(forget, form.preset, [form.preset, form.why], **WORKING)
