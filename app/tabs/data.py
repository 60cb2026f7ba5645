"""Data: upload a file, see what was found in it."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from app.components.catalogue import Catalogue, Words
from app.components.markup import conversation, day, facts, size
from app.components.shell import WORKING, Shell, refusal, told
from app.service import Workbench
from core.data.read import SUFFIXES
from storage.tables import Dataset

TAB, TITLE = "data", "Data"
_WORDS = Words(
    label="Data sets",
    columns=("Name", "Format", "Rows", "Size", "File", "Added"),
    nothing="No data yet. Upload a file, or start with the sample conversations.",
    remove="Delete",
    question="Delete this data set? Adapters trained on it stay.",
)


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
    catalogue = Catalogue(
        shell, _WORDS, rows=lambda: _rows(workbench), remove=workbench.registry.remove_dataset,
        describe=lambda name: detail_html(workbench.registry.find(Dataset, name)),
    )  # fmt: skip

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

    catalogue.follow(add.click(take, [upload, name], [upload, name, catalogue.chosen], **WORKING))
    catalogue.follow(sample.click(take_sample, None, catalogue.chosen, **WORKING))


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
