"""Export: what has left the house on the left, the chosen export on the right; a new one in a sheet."""

from __future__ import annotations

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.job_result import last_result
from app.web.parts.markup import day, empty, size, title_line
from app.web.parts.panes import ask_first, bar, left, opener, right, sheet, split
from app.web.parts.picker import Facet, Query, Row, Rows, matching, picker
from app.web.parts.routes import there
from app.web.parts.scripts import script
from app.web.parts.shell import WORKING, Shell, inform, refusal, told
from app.web.sections.export.export_markup import (
    VERDICTS,
    became,
    card_html,
    commands_html,
    facts_html,
    files_html,
    format_label,
    is_there,
)
from app.web.sections.export.sheet import export_sheet
from storage.errors import NotFound
from storage.tables import Export

TAB, TITLE = "export", "Export"
_NOTHING = "Nothing exported yet. Export an adapter with the button above."
_ABOUT = (
    "A merged model is W + (α/r)BA, added in float32 and rounded once. Whatever is written is loaded again "
    "from disk in a process of its own and compared with base + adapter before you rely on it."
)
_REMOVE = "Remove this export? Its files are deleted if they are in the home folder; elsewhere they stay."
_CHOOSE = (
    "Choose an export on the left, or export an adapter: as a merged model, for Ollama or llama.cpp, or as "
    "the adapter alone."
)


def build(shell: Shell) -> None:
    """Lay out the section and bind its handlers."""
    workbench = shell.workbench
    with split(TAB):
        with left():
            opened = opener("export-adapter", "Export an adapter", variant="primary")
            said = gr.HTML()
            chosen = picker(
                shell, TAB, "Exports", lambda query: find(workbench, query), _NOTHING, search="Search exports"
            )
        with right():
            _detail(shell, chosen)
    with sheet("export-adapter", "Export an adapter", _ABOUT):
        export_sheet(shell, TAB, opened)
    shell.refresh(lambda: last_result(workbench.registry, "export_adapter")[0], [], [said])


def find(workbench: Workbench, query: Query) -> Rows:
    """The rows of the list."""
    rows = workbench.registry.all(Export)
    formats = dict.fromkeys(one.format for one in rows)
    wanted = query.facets.get("format", "")
    found = matching([_row(one) for one in rows if wanted in ("", one.format)], query)
    facet = Facet("format", "Format", [("", "Any format"), *[(one, format_label(one)) for one in formats]])
    return Rows(found.rows, found.total, [facet])


def _row(one: Export) -> Row:
    verdict = () if one.passed else ((one.verdict, VERDICTS.get(one.verdict, "calm")),)
    return Row(
        str(one.id),
        one.adapter_name,
        f"{format_label(one.format)} · {day(one.created)}",
        size(one.size_bytes),
        badges=verdict,
    )


def _detail(shell: Shell, chosen: gr.HTML) -> None:
    workbench = shell.workbench
    title = gr.HTML()
    with bar() as actions:
        download = gr.Button("Download as zip", variant="primary", size="md", scale=0, link="#")
        chat = gr.Button("Chat with it", size="md", scale=0)
        check = gr.Button("Check the files", size="md", scale=0)
        removed = ask_first(
            "remove-export",
            "Remove …",
            _REMOVE,
            lambda number: _required(workbench, number).id,
            lambda asked, number: _remove(workbench, asked, number),
            [chosen],
            [chosen],
        )
    with gr.Column(visible=False) as about, gr.Tabs():
        with gr.Tab("Overview"):
            overview = gr.HTML()
        with gr.Tab("Use it"):
            commands = gr.HTML(js_on_load=script("copy.js"))
        with gr.Tab("Files"):
            files = gr.HTML()
        with gr.Tab("Card"):
            card = gr.HTML()
    nothing = gr.HTML()

    def show(number: str) -> tuple[object, ...]:
        row = _export(workbench, number)
        if row is None:
            hidden = gr.Row(visible=False), gr.skip(), gr.skip(), gr.Column(visible=False)
            return "", *hidden, "", "", "", "", empty(_CHOOSE)
        verdict = (row.verdict, VERDICTS.get(row.verdict, "calm"))
        return (
            title_line(row.adapter_name, [(format_label(row.format), "calm"), verdict]),
            gr.Row(visible=True),
            gr.Button(link=f"/workbench/exports/{row.id}.zip", visible=is_there(row)),
            gr.Button(visible=became(workbench, row) is not None),
            gr.Column(visible=True),
            facts_html(workbench, row),
            commands_html(workbench, row),
            files_html(row),
            card_html(row),
            "",
        )

    outputs = [title, actions, download, chat, about, overview, commands, files, card, nothing]
    shell.refresh(show, [chosen], outputs)
    chat.click(told(lambda number: _chat(workbench, number)), chosen, shell.go, **WORKING)
    check.click(told(lambda number: _check(workbench, number)), chosen, None, **WORKING)
    shell.soon(removed)


def _export(workbench: Workbench, number: str) -> Export | None:
    """The export of this number, if it has not been removed meanwhile."""
    try:
        return workbench.registry.get(Export, int(number)) if number.isdecimal() else None
    except NotFound:
        return None


def _required(workbench: Workbench, number: str) -> Export:
    row = _export(workbench, number)
    if row is None:
        raise refusal("This export is not here any more; choose another one.")
    return row


def _chat(workbench: Workbench, number: str) -> str:
    base = became(workbench, _required(workbench, number))
    if base is None:
        raise refusal("The base model that it became has been removed; add its folder under Models.")
    return there("playground", base=base.name)


def _check(workbench: Workbench, number: str) -> None:
    row = workbench.exports.verify(_required(workbench, number).id or 0)
    inform(f"All {len(row.files)} files are as they were written.", "Unchanged")


def _remove(workbench: Workbench, asked: int, number: str) -> str:
    if _required(workbench, number).id != asked:
        raise refusal("Another export is chosen by now than the one you were asked about; look at it first.")
    inform(workbench.exports.remove(asked), "Removed")
    return ""
