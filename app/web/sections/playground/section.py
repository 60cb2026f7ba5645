"""Playground: the base and what was made of it answer one prompt, side by side in one batch."""

from __future__ import annotations

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.panes import bar, opener
from app.web.parts.routes import link
from app.web.parts.shell import QUIET, Shell
from app.web.sections.playground import blend_sheet, chats_sheet, classify_sheet, judge_sheet, row_sheet
from app.web.sections.playground.asking import bind_asking, bind_messages, bind_sliding
from app.web.sections.playground.column_choice import bind_choice, bind_columns, bind_wishes
from app.web.sections.playground.column_fields import (
    ColumnFields,
    keep_sampling,
    sampling_sheet,
    who_answers_row,
)
from app.web.sections.playground.reference_sheet import KEY as REFERENCE
from app.web.sections.playground.reference_sheet import reference_sheet
from app.web.sections.playground.talk import talk_panel
from app.web.sections.playground.who_answers import writing_bases

TAB, TITLE = "playground", "Playground"


def build(shell: Shell) -> None:
    """Lay out the section and bind its handlers."""
    workbench, who = shell.workbench, who_answers_row()
    with bar():
        clear = gr.Button("New chat", size="md", scale=0, min_width=0)
        opener(chats_sheet.KEY, "Conversations")
        opener("sampling", "Sampling")
        opener(classify_sheet.KEY, "Classify")
        opener(blend_sheet.KEY, "Blend")
        opener(REFERENCE, "Reference answer")
        judging = opener(judge_sheet.KEY, "Judge")
    missing, warned = gr.HTML(elem_classes="when-said"), gr.HTML()
    talk = talk_panel(workbench)
    stop = _ask_line()
    sampling, system, raw = sampling_sheet()
    fields = ColumnFields(who, sampling)
    chat = chats_sheet.chats_sheet(shell)
    classify_outputs = classify_sheet.classify_sheet(shell)
    row_outputs = row_sheet.row_sheet(shell)
    blend, live = blend_sheet.blend_sheet(shell, fields, chat)
    judge_sheet.judge_sheet(shell, judging, [who.base, who.adapters], sampling)
    reference_sheet(shell, chat, fields)

    shell.refresh(lambda: _without_base(workbench), [], [missing])
    bind_choice(shell, who, shell.kept["playground"])
    asked_with = {**sampling, "system": system, "raw": raw}
    keep_sampling(shell, asked_with, shell.kept["sampling"])
    bind_columns(workbench, who, talk, chat, warned, shell.kept["playground"])
    bind_wishes(shell, TAB, who, chat, classify_outputs)
    bind_asking(shell, fields, (system, raw), chat, talk, stop)
    bind_messages(shell, fields, chat, talk, stop, row_outputs)
    bind_sliding(shell, fields, blend, live, chat, talk)

    clear.click(lambda: "", None, chat, **QUIET)  # the columns follow


def _without_base(workbench: Workbench) -> str:
    """What to do where nothing can answer."""
    if writing_bases(workbench):
        return ""
    add = link("Add one under Models", "models")
    said = f"There is no base model that writes text yet. {add}: the starter model is enough."
    return f"<div class='empty'>{said}</div>"


def _ask_line() -> gr.Button:
    """The line at the bottom: the prompt and Send, which assets/talk.js listens to, and Stop."""
    with gr.Row(elem_classes="ask-line"):
        gr.Textbox(
            label="Prompt",
            show_label=False,
            lines=1,
            max_lines=10,
            scale=8,
            placeholder="Ask all of them the same question. Enter sends, Shift+Enter breaks the line.",
            elem_id="prompt",
        )
        gr.Button("Send", variant="primary", size="md", scale=0, min_width=80, elem_id="send-question")
        stop = gr.Button("Stop", interactive=False, size="md", scale=0, min_width=80, elem_id="stop-answers")
    return stop
