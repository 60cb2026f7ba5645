"""Overview: what the data set is, what was found in it, how its rows are made, and the first of them."""

from __future__ import annotations

import gradio as gr

from app.web.parts.markup import conversation
from app.web.parts.shell import Shell
from app.web.sections.data.charts import Part, counted, figure_places
from app.web.sections.data.chosen import ChosenData
from app.web.sections.data.data_markup import about_html, kinds_html

_MOST_LABELS = 100


def overview_tab(shell: Shell, chosen: ChosenData) -> None:
    """Lay out the tab and bind what it shows."""
    with gr.Row(elem_classes=["side-by-side", "wide"]):
        about, kinds = gr.HTML(), gr.HTML()
    places = figure_places(("Turns a row, of all rows read", "Turns by role", "Labels"))
    first = gr.HTML()

    def show(name: str, base: str | None, length: float) -> list[object]:
        row = chosen.dataset(name)
        if row is None:
            return [gr.skip()] * (3 + len(places.outputs))
        opened = shell.workbench.datasets.open(row)
        summary = opened.summary
        parts: list[Part | None] = [
            counted(summary.turns, "turns") if summary else None,
            counted(summary.roles, "role", "turns") if summary else None,
            counted(dict(list(summary.labels.items())[:_MOST_LABELS]), "label") if summary else None,
        ]
        return [
            about_html(row, opened.version.chat),
            kinds_html(opened, chosen.checked(row, base, length)),
            conversation(row.preview[:3]),
            *places.filled(parts),
        ]

    shell.refresh(show, chosen.inputs, [about, kinds, first, *places.outputs])
