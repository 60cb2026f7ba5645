"""Data: upload a file, see what was found in it."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from app.components.markup import conversation, day, empty, facts, size
from app.components.shell import QUIET, WORKING, Shell, refusal, selected_name, told
from app.service import Workbench
from core.data.read import SUFFIXES
from storage.errors import NotFound
from storage.tables import Dataset

TAB, TITLE = "data", "Data"
_HEADERS = ["Name", "Format", "Rows", "Size", "File", "Added"]


def build(shell: Shell) -> None:
    """Lay out the tab and bind its handlers."""
    workbench = shell.workbench
    with gr.Row(equal_height=True):
        upload = gr.File(label="Upload a file of rows", file_types=list(SUFFIXES), height=128, scale=2, elem_id="data-upload")
        with gr.Column(scale=2):
            name = gr.Textbox(label="Name", info="Empty: taken from the file.")
            with gr.Row():
                add = gr.Button("Import", variant="primary")
                sample = gr.Button("Use the sample data")
    gr.Markdown(
        "JSONL, JSON, CSV, TSV, Parquet or plain text. Recognised: chat **messages**, **ShareGPT** conversations, **Alpaca**, "
        "**prompt/completion** and question/answer columns, **text and label**, raw **text**.",
        elem_classes="quiet",
    )
    table = gr.Dataframe(headers=_HEADERS, interactive=False, label="Data sets", show_label=False)
    nothing = gr.HTML(empty("No data yet. Upload a file, or start with the sample conversations."))
    chosen = gr.State("")
    with gr.Column(visible=False) as about:
        detail = gr.HTML()
        with gr.Row():
            remove = gr.Button("Delete …", variant="stop", scale=0, min_width=120)
        with gr.Row(visible=False, elem_classes="danger-zone") as confirm:
            gr.Markdown("Delete this data set? Adapters trained on it stay.")
            yes = gr.Button("Delete it", variant="stop", scale=0, min_width=120)
            no = gr.Button("Keep it", scale=0, min_width=120)

    def show() -> tuple[object, ...]:
        rows = _rows(workbench)
        return gr.Dataframe(value=rows, visible=bool(rows)), gr.HTML(visible=not rows)

    def show_detail(dataset: str) -> tuple[object, ...]:
        try:
            html = detail_html(workbench.registry.find(Dataset, dataset)) if dataset else ""
        except NotFound:
            html = ""
        return gr.Column(visible=bool(html)), html

    def show_chosen(name: str) -> tuple[object, ...]:
        return *show_detail(name), gr.Row(visible=False)  # a question about another one is off the table

    shell.refresh(show, [], [table, nothing])
    shell.refresh(show_detail, [chosen], [about, detail])

    @told
    def take(path: str | None, wanted: str) -> tuple[object, ...]:
        if not path:
            raise refusal("Choose a file to upload first.")
        row = workbench.add_dataset(Path(path), wanted.strip())
        gr.Info(f"{row.rows} rows. Format {row.format}: {row.reason}.", title="Imported")
        return None, "", row.name

    @told
    def take_sample() -> str:
        return workbench.add_sample().name

    @told
    def drop(dataset: str) -> str:
        workbench.registry.remove_dataset(dataset)
        return ""

    shown, about_parts = [table, nothing], [about, detail, confirm]
    add.click(take, [upload, name], [upload, name, chosen], **WORKING).success(show, None, shown, **QUIET).then(
        show_chosen, chosen, about_parts, **QUIET
    )
    sample.click(take_sample, None, chosen, **WORKING).success(show, None, shown, **QUIET).then(
        show_chosen, chosen, about_parts, **QUIET
    )
    table.select(selected_name, None, chosen, **QUIET).then(show_chosen, chosen, about_parts, **QUIET)
    remove.click(lambda: gr.Row(visible=True), None, confirm, **QUIET)
    no.click(lambda: gr.Row(visible=False), None, confirm, **QUIET)
    yes.click(drop, chosen, chosen, **WORKING).success(show, None, shown, **QUIET).then(show_chosen, chosen, about_parts, **QUIET)


def _rows(workbench: Workbench) -> list[list[str]]:
    return [
        [row.name, row.format, f"{row.rows:,}", size(row.size_bytes), row.source_name, day(row.created)]
        for row in workbench.registry.all(Dataset)
    ]


def detail_html(row: Dataset) -> str:
    """What was found in a file, and its first rows as they will be trained on."""
    about = facts([
        ("Format", f"{row.format}: {row.reason}"), ("Rows", f"{row.rows:,}"), ("File", row.source_name),
        ("Digest", row.digest), ("Added", day(row.created)),
    ], row.name)  # fmt: skip
    return f"{about}<div style='height:10px'></div>{conversation(row.preview[:3])}"
