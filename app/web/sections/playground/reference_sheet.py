"""How likely an answer that one would have wished for is to every column."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.shared.speakers import called
from app.web.parts.panes import bar, sheet
from app.web.parts.shell import WORKING, Shell, told
from app.web.sections.playground.column_fields import ColumnFields
from app.web.sections.playground.score_view import scores_html

KEY = "reference"


def reference_sheet(shell: Shell, chat: gr.HTML, fields: ColumnFields) -> None:
    """Lay it out and bind its handlers."""
    workbench = shell.workbench
    with sheet(KEY, "Reference answer", "How likely each column finds an answer to the last question."):
        answer = gr.Textbox(value="", label="The answer that is wished for", lines=6, max_lines=16)
        with bar():
            score = gr.Button("Score it", variant="primary", size="md", scale=0)
        found = gr.HTML()

    @told
    def scored(wished: str, chat_now: str, *values: Any) -> str:
        said = fields.read(values)
        found = workbench.conversations.scores(int(chat_now or 0), said.speakers, wished, said.config)
        return scores_html([called(one) for one in said.speakers], found)

    score.click(scored, [answer, chat, *fields.inputs], found, **WORKING)
