"""Data: the data sets on the left, the chosen one on the right; adding one in a sheet."""

from __future__ import annotations

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.markup import empty, title_line
from app.web.parts.panes import ask_first, bar, close_sheet, left, opener, require_same, right, sheet, split
from app.web.parts.picker import Query, Row, Rows, matching, picker
from app.web.parts.routes import there
from app.web.parts.shell import WORKING, Shell, told
from app.web.sections.data.chosen import ChosenData
from app.web.sections.data.data_markup import csv_link
from app.web.sections.data.import_form import ImportPanel
from app.web.sections.data.lengths import lengths_tab
from app.web.sections.data.overview import overview_tab
from app.web.sections.data.report import report_tab
from app.web.sections.data.row_tab import row_tab
from app.web.sections.data.version_tab import version_tab
from storage.errors import NotFound
from storage.tables import Dataset

TAB, TITLE = "data", "Data"
_NOTHING = "No data yet. Add your own, or the sample conversations: one click in the same sheet."
_REMOVE = "Remove this data set with all its versions? Adapters that were trained on it stay."
_ADD = "Add a data set", "add-data"
_EMPTY = empty("Choose a data set on the left, or add one.", *_ADD)


def build(shell: Shell) -> None:
    """Lay out the section and bind its handlers."""
    workbench = shell.workbench
    chosen = ChosenData(shell)
    awaited = gr.State("")  # the name of a data set that is being imported here
    with split(TAB):
        with left():
            opener("add-data", "Add data", variant="primary")
            listed = picker(
                shell,
                TAB,
                "Data sets",
                lambda query: find(workbench, query),
                _NOTHING,
                search="Search data sets",
            )
        with right():
            _detail(shell, chosen)
    with sheet("add-data", "Add data"):
        panel = ImportPanel(shell)
    imported = panel.add.click(*panel.importing, awaited, concurrency_id="import", **WORKING)
    panel.empty(imported)
    close_sheet(imported, "add-data")
    sample = panel.sample.click(told(lambda: workbench.datasets.add_sample().name), None, awaited, **WORKING)
    close_sheet(sample, "add-data")
    shell.soon(sample)
    both = [chosen.name, listed, awaited]
    shell.decide(lambda _, now, wanted: _choose(workbench, now, wanted), both, both)


def find(workbench: Workbench, query: Query) -> Rows:
    """The rows of the list."""
    return matching([_row(one) for one in workbench.registry.all(Dataset)], query)


def _row(one: Dataset) -> Row:
    return Row(
        one.name,
        one.name,
        f"{one.format} · version {one.version}",
        f"{one.rows:,} rows",
        badges=tuple(_badges(one)),
    )


def _badges(one: Dataset) -> list[tuple[str, str]]:
    """What training waits for, or else what is worth a look."""
    if one.faulty_rows:
        return [(f"{one.faulty_rows:,} error{'s' if one.faulty_rows > 1 else ''}", "bad")]
    return [(f"{one.warnings:,} warning{'s' if one.warnings > 1 else ''}", "busy")] if one.warnings else []


def _choose(workbench: Workbench, listed: str, awaited: str) -> tuple[object, ...]:
    """What is looked at, what the list chooses, what is still awaited: when it has come, it is the one."""
    if awaited and awaited in workbench.registry.names(Dataset):
        return awaited, awaited, ""
    return listed or "", gr.skip(), gr.skip()


def _detail(shell: Shell, chosen: ChosenData) -> None:
    workbench = shell.workbench
    nothing = gr.HTML(_EMPTY)
    with gr.Column(visible=False, elem_classes="chosen-data") as panel:
        title = gr.HTML()
        with bar():
            train = gr.Button("Train on it", variant="primary", size="md", scale=0)
            report = gr.HTML()
            removed = ask_first(
                "remove-data",
                "Remove …",
                _REMOVE,
                lambda name: workbench.registry.find(Dataset, name).id,
                lambda asked, name: _remove(workbench, asked, name),
                [chosen.name],
            )
        chosen.check_bar()
        with gr.Tabs():
            for name, build_tab in (
                ("Overview", overview_tab),
                ("Rows and tokens", row_tab),
                ("Report", report_tab),
                ("Lengths and template", lengths_tab),
                ("Split and versions", version_tab),
            ):
                with gr.Tab(name):
                    build_tab(shell, chosen)

    def show(name: str, base: str | None, length: float) -> tuple[object, ...]:
        row = chosen.dataset(name)
        if row is None:
            return _gone(name), gr.Column(visible=False), "", ""
        link = csv_link(row, base, length) if chosen.checked(row, base, length) else csv_link(row)
        badges = [(f"version {row.version}", "calm"), *_badges(row)]
        return "", gr.Column(visible=True), title_line(row.name, badges), link

    shell.refresh(show, chosen.inputs, [nothing, panel, title, report])
    train.click(lambda name: there("train", data=name), chosen.name, shell.go, **WORKING)
    shell.soon(removed)


def _gone(name: str) -> str:
    if not name:
        return _EMPTY
    said = f"There is no data set called {name} any more. Choose another one on the left, or add one."
    return empty(said, *_ADD)


def _remove(workbench: Workbench, asked: int, name: str) -> None:
    try:
        current = workbench.registry.find(Dataset, name).id
    except NotFound:
        current = None
    require_same(name, asked, current)
    workbench.datasets.remove(name)
