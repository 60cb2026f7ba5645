"""Train: what is trained on what, with which options; what it would take; and its start, always in view."""

from __future__ import annotations

import gradio as gr

from app.web.parts.shell import Shell
from app.web.sections.train.form import TrainForm, what_line
from app.web.sections.train.live_runs import live_runs
from app.web.sections.train.measure_button import bind_measuring
from app.web.sections.train.option_groups import options_panel
from app.web.sections.train.planning import bind_plan, plan_panel
from app.web.sections.train.preset_controls import preset_controls
from app.web.sections.train.restoring import TAB, bind_choices, bind_keeping
from app.web.sections.train.starting import bind_start

TITLE = "Train"

__all__ = ["TAB", "TITLE", "build"]


def build(shell: Shell) -> None:
    """Lay out the section and bind its handlers."""
    with gr.Column(elem_classes="cockpit grows"):
        base, dataset, preset, name = what_line()
        with gr.Row(elem_classes="cockpit-body"):
            with gr.Column(elem_classes="pane options-pane", min_width=0):
                presets = gr.Column(elem_classes="preset-column", min_width=0)
                options = options_panel()
            with gr.Column(elem_classes="pane plan-pane", min_width=0):
                with gr.Column(elem_classes="plan-scroll", min_width=0):
                    plan, measured = plan_panel("plan"), plan_panel("measured")
                with gr.Column(elem_classes="plan-actions", min_width=0):
                    together = gr.Checkbox(
                        value=False,
                        label="May train at once with other waiting runs",
                        info="Runs on the same base that allow it share every pass over its weights.",
                    )
                    anyway = gr.Checkbox(
                        value=False,
                        visible=False,
                        label="Train it anyway",
                        info="The checklist above refuses this run, and says why.",
                    )
                    start = gr.Button(
                        "Start training", variant="primary", elem_id="start-training", size="md"
                    )
                    measure = gr.Button("Measure first", elem_id="measure", size="md")
                    end = gr.Button("Cancel measuring", visible=False, variant="stop", size="md")
            with gr.Column(elem_classes="pane live-pane", min_width=0):
                live_runs(shell.workbench)
    form = TrainForm(base, dataset, preset, name, options, together, anyway)
    bind_choices(shell, form)
    bind_plan(shell, form, plan, measured)
    with presets:
        preset_controls(shell, form)
    bind_start(shell, form, start)
    bind_measuring(shell, form, measure, end, measured)
    bind_keeping(shell, form, plan)
