"""The playground's sheet to classify a text: what several adapters tell of it, side by side."""

from __future__ import annotations

import time
from html import escape
from typing import Any

import gradio as gr

from app.service.classifiers import CUT, MAX_SIDE_BY_SIDE, Told
from app.service.workbench import Workbench
from app.shared.speakers import PLAIN_BASE
from app.web.parts.panes import bar, sheet
from app.web.parts.routes import link
from app.web.parts.shell import QUIET_QUEUED, Shell, choose_many, refusal, told
from core.data.labels import REGRESSION

KEY = "classify"
_HELP = "Adapters that were trained with the objective classification tell the labels of a text."
_SHOWN = 20  # labels at once; the others are folded away
_OPEN = f"asked => {{ if (asked) document.querySelector('.opens-{KEY}')?.click(); }}"


def classify_sheet(shell: Shell) -> list[Any]:
    """Lay it out and bind its handlers. Returns the outputs that `asked_for` fills."""
    workbench = shell.workbench
    with sheet(KEY, "Classify a text", _HELP):
        adapters = gr.Dropdown(
            [],
            label="Adapters that classify",
            multiselect=True,
            max_choices=MAX_SIDE_BY_SIDE,
            interactive=True,
        )
        text = gr.Textbox(
            label="Text to classify",
            lines=3,
            max_lines=12,
            placeholder="Shift+Enter classifies, Enter breaks the line.",
        )
        with bar():
            tell = gr.Button("Classify", variant="primary", size="md", scale=0)
        found = gr.HTML()
    opening = gr.Textbox(visible=False)

    def show(chosen: list[str] | None) -> object:
        names = [row.name for row in workbench.classifiers.all()]
        return choose_many(names, chosen, names[:1])

    shell.refresh(show, [adapters], [adapters])

    @told
    def classify(text: str, names: list[str] | None) -> str:
        if not names:
            raise refusal("Choose an adapter that classifies; there is none until one was trained.")
        return told_html(workbench.classifiers.classify([text], names)[0])

    gr.on(
        [tell.click, text.submit],
        classify,
        [text, adapters],
        found,
        concurrency_id="generate",
        **{**QUIET_QUEUED, "show_progress": "minimal"},
    )
    opening.change(None, opening, None, js=_OPEN)
    return [adapters, opening]


def asked_for(workbench: Workbench, name: str) -> tuple[object, str]:
    """The sheet's outputs where an adapter is to classify: it is chosen, and the sheet opens."""
    names = [row.name for row in workbench.classifiers.all()]
    return gr.Dropdown(choices=names, value=[name]), f"{name} {time.time()}"


def told_html(row: list[Told]) -> str:
    """A line for each label with every adapter's probability, the likeliest first; of a regression the
    numbers.
    """
    head = "".join(f"<th scope='col'>{_named(one)}</th>" for one in row)
    answers = "".join(f"<td><b>{escape(one.answer)}</b></td>" for one in row)
    ranked = ranked_labels(row)
    lines = [
        f"<tr><th scope='row'>{escape(label)}</th>{''.join(_cell(one, label) for one in row)}</tr>"
        for label in ranked
    ]
    top = f"<thead><tr><th scope='col'>Label</th>{head}</tr></thead>"
    rest = (
        f"<details><summary>{len(lines) - _SHOWN:,} more labels</summary><table class='rows told'>{top}"
        f"<tbody>{''.join(lines[_SHOWN:])}</tbody></table></details>"
        if len(lines) > _SHOWN
        else ""
    )
    said = f"<p class='hint'>{CUT}</p>" if any(one.cut for one in row) else ""
    return (
        f"{said}<table class='rows told'>{top}<tbody><tr><th scope='row'>Answer</th>{answers}</tr>"
        f"{''.join(lines[:_SHOWN])}</tbody></table>{rest}"
    )


def ranked_labels(row: list[Told]) -> list[str]:
    """All labels that an adapter gives a probability, the likeliest of any first."""
    best: dict[str, float] = {}
    for one in row:
        if one.problem_type != REGRESSION:
            for label, share in one.probabilities.items():
                best[label] = max(share, best.get(label, 0.0))
    return sorted(best, key=lambda label: -best[label])


def _named(told: Told) -> str:
    return link(told.adapter, "adapters", name=told.adapter) if told.adapter else PLAIN_BASE


def _cell(told: Told, label: str) -> str:
    share = told.probabilities.get(label)
    if share is None or told.problem_type == REGRESSION:
        return "<td>–</td>"
    return (
        f"<td><span class='share'>{100 * share:.1f} %</span>"
        f"<span class='bar'><i style='width:{100 * share:.1f}%'></i></span></td>"
    )
