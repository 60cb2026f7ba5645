"""Lengths and template: what a base's tokenizer and chat template make of the rows."""

from __future__ import annotations

import gradio as gr

from app.web.parts.shell import Shell
from app.web.sections.data.charts import Part, figure_places, histogram
from app.web.sections.data.chosen import ChosenData
from app.web.sections.data.token_markup import template_html, token_facts_html
from core.train.config import TrainConfig

_BATCH = TrainConfig().micro_batch_size * TrainConfig().gradient_accumulation_steps
_UNCHECKED = (
    "<div class='empty'>Not checked with this base and length yet: press “Check with this base” above, to "
    "see tokens, lengths, packing and what the chat template does.</div>"
)


def lengths_tab(shell: Shell, chosen: ChosenData) -> None:
    """Lay out the tab and bind what it shows."""
    with gr.Row(elem_classes="side-by-side"):
        facts, template = gr.HTML(), gr.HTML()
    places = figure_places(("Tokens a row", "Share of a row that carries loss"))

    def show(name: str, base: str | None, length: float) -> list[object]:
        row = chosen.dataset(name)
        if row is None:
            return [gr.skip()] * (2 + len(places.outputs))
        checked = chosen.checked(row, base, length)
        if checked is None:
            return [_UNCHECKED, "", *places.filled([None, None])]
        report = checked.report
        parts: list[Part | None] = [
            histogram(report["lengths"], "tokens", report["max_length"]),
            histogram(report["shares"], "share"),
        ]
        return [
            token_facts_html(report, _BATCH),
            template_html(checked.template),
            *places.filled(parts),
        ]

    shell.refresh(show, chosen.inputs, [facts, template, *places.outputs])
