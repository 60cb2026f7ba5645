"""Adapters: everything trained or imported, and what each belongs to."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from app.components.markup import day, empty, facts, number, size
from app.components.shell import QUIET, WORKING, Shell, refusal, selected_name, told
from app.service import Workbench
from storage.errors import NotFound
from storage.tables import Adapter

TAB, TITLE = "adapters", "Adapters"
_HEADERS = ["Name", "Base model", "Data set", "Rank", "Train loss", "Validation loss", "Date"]


def build(shell: Shell) -> None:
    """Lay out the tab and bind its handlers."""
    workbench = shell.workbench
    table = gr.Dataframe(
        headers=_HEADERS, interactive=False, label="Adapters", show_label=False, show_search="search", max_chars=60
    )
    nothing = gr.HTML(empty("No adapter yet. Train one under Train, or import one from PEFT below."))
    chosen = gr.State("")
    with gr.Column(visible=False) as about:
        detail = gr.HTML()
        with gr.Row():
            chat = gr.Button("Chat with it", variant="primary", scale=0, min_width=140)
            remove = gr.Button("Delete …", variant="stop", scale=0, min_width=120)
        with gr.Row(visible=False, elem_classes="danger-zone") as confirm:
            gr.Markdown("Delete this adapter and its files? This cannot be undone.")
            yes = gr.Button("Delete it", variant="stop", scale=0, min_width=120)
            no = gr.Button("Keep it", scale=0, min_width=120)
    with gr.Accordion("Import a PEFT adapter", open=False), gr.Row(equal_height=True):
        folder = gr.Textbox(label="Folder", info="With adapter_config.json and adapter_model.safetensors; only read.", scale=3)
        name = gr.Textbox(label="Name", info="Empty: the folder's.", scale=1)
        take = gr.Button("Import", scale=0, min_width=120)

    def show() -> tuple[object, ...]:
        rows = _rows(workbench)
        return gr.Dataframe(value=rows, visible=bool(rows)), gr.HTML(visible=not rows)

    def show_detail(adapter: str) -> tuple[object, ...]:
        try:
            html = detail_html(workbench, workbench.registry.find(Adapter, adapter)) if adapter else ""
        except NotFound:
            html = ""
        return gr.Column(visible=bool(html)), html

    def show_chosen(name: str) -> tuple[object, ...]:
        return *show_detail(name), gr.Row(visible=False)  # a question about another one is off the table

    shell.refresh(show, [], [table, nothing])
    shell.refresh(show_detail, [chosen], [about, detail])

    @told
    def drop(adapter: str) -> str:
        workbench.registry.remove_adapter(adapter)
        return ""

    @told
    def bring(path: str, wanted: str) -> tuple[str, str]:
        if not path.strip():
            raise refusal("Give the adapter's folder first.")
        workbench.import_adapter(Path(path.strip()).expanduser(), wanted.strip())
        return "", ""

    table.select(selected_name, None, chosen, **QUIET).then(show_chosen, chosen, [about, detail, confirm], **QUIET)
    chat.click(lambda name: (gr.Tabs(selected="playground"), name), chosen, [shell.tabs, shell.to_chat], **WORKING)
    remove.click(lambda: gr.Row(visible=True), None, confirm, **QUIET)
    no.click(lambda: gr.Row(visible=False), None, confirm, **QUIET)
    yes.click(drop, chosen, chosen, **WORKING).success(show, None, [table, nothing], **QUIET).then(
        show_chosen, chosen, [about, detail, confirm], **QUIET
    )
    take.click(bring, [folder, name], [folder, name], **WORKING)


def _rows(workbench: Workbench) -> list[list[str]]:
    return [
        [row.name, row.base_name, row.dataset_name or "–", str(row.rank), number(row.train_loss), number(row.validation_loss),
         day(row.created)]
        for row in workbench.registry.all(Adapter)
    ]  # fmt: skip


def detail_html(workbench: Workbench, row: Adapter) -> str:
    """Everything known of one adapter."""
    train = row.config.get("train", {})
    exports = [
        f"{day(one.created)}: {one.folder} ({'passed' if one.passed else 'failed'})"
        for one in workbench.registry.exports_of(row.digest)
    ]
    return facts([
        ("Base model", row.base_name), ("Fingerprint of the base", row.base_fingerprint),
        ("Source", f"run {row.run_id}" if row.run_id else row.source), ("Data set", row.dataset_name),
        ("Rank, alpha", f"{row.rank}, {row.alpha:g}"), ("Target modules", row.target_modules),
        ("Parameters", f"{row.parameters:,}"), ("Steps", row.steps),
        ("Loss", f"train {number(row.train_loss)}, validation {number(row.validation_loss)}"),
        ("Learning rate", f"{train['learning_rate']:g}, {train['lr_scheduler']}" if train else ""),
        ("Digest", row.digest), ("Size", size(row.size_bytes)), ("Created", day(row.created)), ("Exports", "; ".join(exports)),
    ], row.name)  # fmt: skip
