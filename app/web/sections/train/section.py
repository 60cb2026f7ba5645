"""Train: choose, configure, start."""

from __future__ import annotations

import gradio as gr

from app.web.parts.shell import Shell
from app.web.sections.train.form import bind_choices, train_form
from app.web.sections.train.planning import bind_measuring, bind_plan
from app.web.sections.train.preset_controls import bind_presets
from app.web.sections.train.starting import bind_duplicates, bind_start

TAB, TITLE = "train", "Train"


def build(shell: Shell) -> None:
    """Lay out the tab and bind its handlers."""
    form = train_form(shell.workbench)
    with gr.Row(elem_id="start-row"):
        start = gr.Button("Start training", variant="primary", elem_id="start-training")
        measure = gr.Button("Measure first", elem_id="measure")
    bind_choices(shell, form)
    bind_plan(shell, form)
    bind_start(shell, form, start)
    bind_measuring(shell, form, measure)
    bind_presets(shell, form)
    bind_duplicates(shell, form)
