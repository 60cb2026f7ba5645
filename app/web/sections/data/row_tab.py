"""Rows and tokens: the rows of the data set, searched and a page at a time, and the chosen one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gradio as gr

from app.service.datasets import ALL, FILTERS
from app.web.parts.markup import conversation
from app.web.parts.panes import bar
from app.web.parts.scripts import script
from app.web.parts.shell import FOLLOWING, WORKING, Shell, inform, told
from app.web.sections.data.charts import table
from app.web.sections.data.chosen import ChosenData
from app.web.sections.data.row_editor import edit_tab, edited_row, editor, editor_value
from app.web.sections.data.token_markup import tokens_html
from core.base_model.templates import TEMPLATES
from core.data.findings import ERROR, KINDS, NOTE, WARNING
from core.data.importing import row_shown
from storage.tables import Dataset

_NO_ROW = "<div class='empty'>Choose a row on the left to see it as turns and as tokens, or to edit it.</div>"
_COLOURS = {ERROR: "bad", WARNING: "busy", NOTE: "calm"}
_MOST = 50  # rows a page
_MOST_SAID = 200  # characters of a row in the list


def row_tab(shell: Shell, chosen: ChosenData) -> None:
    """Lay out the tab and bind its handlers."""
    with gr.Row(elem_classes="rows-and-row"):
        listed = _row_list(chosen)
        with gr.Column(elem_classes="one-row", min_width=0):
            title = gr.HTML(_NO_ROW)
            with gr.Column(visible=False) as shown, gr.Tabs():
                with gr.Tab("Tokens"):
                    template, use = _template_choice()
                    tokens = gr.HTML()
                with gr.Tab("Conversation"):
                    turns_read = gr.HTML()
                with gr.Tab("Edit"):
                    turns = editor()
                    edit_tab(shell, turns)

    def choose(name: str, lists: str) -> tuple[object, ...]:
        return _row_shown(chosen, name, _chosen_row(lists))

    def its_tokens(name: str, base: str | None, length: float, trial: str, lists: str) -> Iterator[str]:
        row, index = chosen.dataset(name), _chosen_row(lists)
        if row is not None and index is not None:
            yield "<p class='hint'>Asking the engine for its tokens …</p>"
            yield _tokens(chosen, row, index, base, trial)

    def try_template(name: str, base: str | None, length: float, trial: str, edited: str) -> str:
        row, index = chosen.dataset(name), edited_row(edited)
        return _tokens(chosen, row, index, base, trial) if row and index is not None else ""

    def about(name: str, base: str | None, length: float) -> tuple[object, ...]:
        row = chosen.dataset(name)
        model = chosen.model(base)
        bare = model is not None and not model.has_chat_template
        return _about(chosen, row, base, length), gr.Dropdown(visible=bare), gr.Button(visible=bare)

    shell.refresh(about, chosen.inputs, [listed, template, use])
    inputs = [*chosen.inputs, template]
    # The row at once; its tokens when they come, for the engine may have to start.
    shows = [title, shown, turns_read, turns]
    listed.submit(told(choose), [chosen.name, listed], shows, **FOLLOWING)
    listed.submit(told(its_tokens), [*inputs, listed], tokens, trigger_mode="always_last", **WORKING)
    template.input(told(try_template), [*inputs, turns], tokens, trigger_mode="always_last", **WORKING)
    use.click(told(lambda *given: _use_template(chosen, *given)), [chosen.base, template], None, **WORKING)


def _about(chosen: ChosenData, row: Dataset | None, base: str | None, length: float) -> str:
    """What the list is told."""
    if row is None:
        return json.dumps({})
    checked = chosen.checked(row, base, length) is not None  # when it is done, its findings are in the list
    about = {"name": row.name, "version": row.version, "base": base or "", "length": length}
    return json.dumps(about | {"checked": checked})


def _chosen_row(lists: str) -> int | None:
    """The index of the chosen row, from the list's value."""
    index = json.loads(lists or "{}").get("row")
    return None if index is None else int(index)


def _row_list(chosen: ChosenData) -> gr.HTML:
    """The list. It is told of what it lists as JSON, fetches the rows by itself, and adds to its value which
    is chosen.
    """

    def rows(asked: dict[str, Any]) -> dict[str, Any]:
        row = chosen.dataset(str(asked["name"]))
        if row is None:
            return {"rows": [], "total": 0}
        shown = str(asked["shown"])
        lines, total = chosen.workbench.datasets.lines(
            row,
            shown if shown in FILTERS else ALL,
            start=max(0, int(asked["from"])),
            count=_MOST,
            base=chosen.checked(row, str(asked["base"]), float(asked["length"] or 0)),
            words=str(asked["words"]),
        )
        found = [
            {
                "index": line.index,
                "number": line.number,
                "part": line.part,
                "said": line.said[:_MOST_SAID],
                "findings": [
                    [KINDS[code].title, _COLOURS[KINDS[code].level]]
                    for code in dict.fromkeys(code for code, _ in line.findings)
                ],
            }
            for line in lines
        ]
        return {"rows": found, "total": total}

    return gr.HTML(
        value="",
        label="Rows",
        html_template="<div class='row-list-slot'></div>",
        js_on_load=script("data_rows.js", filters=list(FILTERS), most=_MOST),
        server_functions=[rows],
        elem_id="row-list",
    )


def _template_choice() -> tuple[gr.Dropdown, gr.Button]:
    template = gr.Dropdown(
        [("the base's", ""), *((name, name) for name in TEMPLATES)],
        value="",
        label="Chat template",
        visible=False,
        interactive=True,
        info="This base has none of its own: try one here, then use it for the base.",
    )
    with bar():
        use = gr.Button("Use this template for the base", visible=False, size="md", scale=0)
    return template, use


def _row_shown(chosen: ChosenData, name: str, index: int | None) -> tuple[object, ...]:
    """The chosen row: its title, whether there is one, its turns to read and to edit."""
    row = chosen.dataset(name)
    if row is None or index is None:
        return _NO_ROW, gr.Column(visible=False), "", ""
    stored = chosen.workbench.datasets.row(row, index)
    head = f"<div class='title-line'><h3>Row {stored.number}</h3></div>"
    return head, gr.Column(visible=True), _read(chosen, row, index), editor_value(row, index, stored)


def _read(chosen: ChosenData, row: Dataset, index: int) -> str:
    stored = chosen.workbench.datasets.row(row, index)
    if stored.fault:
        found = chosen.workbench.datasets.open(row).findings.about([index])
        fault = " ".join(finding.detail for finding in found)
        raw = table(("What stands in the file",), [(stored.raw,)]) if stored.raw else ""
        return conversation([{"row": stored.number, "fault": fault}]) + raw
    return conversation([row_shown(stored.example) | {"row": stored.number}])


def _tokens(chosen: ChosenData, row: Dataset, index: int, base: str | None, template: str) -> str:
    stored = chosen.workbench.datasets.row(row, index)
    if stored.fault:
        return "<p class='hint'>A row with an error has no tokens.</p>"
    if not base:
        return "<p class='hint'>Add a base model to see its tokens.</p>"
    found = chosen.workbench.datasets.tokens(row, base, index, template or None)
    return f"<h4>Tokens of row {stored.number}</h4>{tokens_html(found)}"


def _use_template(chosen: ChosenData, base: str, template: str) -> None:
    chosen.workbench.models.choose_template(base, template)
    inform(f"{base} is trained and chatted with in the {template or 'plain'} template from now on.", "Chosen")
