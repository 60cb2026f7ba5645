"""Adapters: everything trained or imported, and what each belongs to."""

from __future__ import annotations

import functools
from pathlib import Path

import gradio as gr

from app.components.catalogue import Catalogue, Words
from app.components.markup import day, facts, number, size
from app.components.shell import WORKING, Shell, refusal, told
from app.service import Workbench
from storage.tables import Adapter

TAB, TITLE = "adapters", "Adapters"
_WORDS = Words(
    label="Adapters",
    columns=("Name", "Base model", "Data set", "Rank", "Train loss", "Validation loss", "Date"),
    nothing="No adapter yet. Train one under Train, or import one from PEFT below.",
    remove="Delete",
    question="Delete this adapter and its files? This cannot be undone.",
)


def build(shell: Shell) -> None:
    """Lay out the tab and bind its handlers."""
    workbench = shell.workbench

    def chat_button(chosen: gr.State) -> None:
        chat = gr.Button("Chat with it", variant="primary", scale=0, min_width=140)
        chat.click(lambda name: (gr.Tabs(selected="playground"), name), chosen, [shell.tabs, shell.to_chat], **WORKING)

    Catalogue(
        shell, _WORDS, rows=lambda: _rows(workbench), remove=functools.partial(_delete, workbench), actions=chat_button,
        describe=lambda name: detail_html(workbench, workbench.registry.find(Adapter, name)),
        show_search="search", max_chars=60,
    )  # fmt: skip
    with gr.Accordion("Import a PEFT adapter", open=False), gr.Row(equal_height=True):
        folder = gr.Textbox(label="Folder", info="With adapter_config.json and adapter_model.safetensors; only read.", scale=3)
        name = gr.Textbox(label="Name", info="Empty: the folder's.", scale=1)
        take = gr.Button("Import", scale=0, min_width=120)

    @told
    def bring(path: str, wanted: str) -> tuple[str, str]:
        if not path.strip():
            raise refusal("Give the adapter's folder first.")
        workbench.import_adapter(Path(path.strip()).expanduser(), wanted.strip())
        return "", ""

    take.click(bring, [folder, name], [folder, name], **WORKING)


def _delete(workbench: Workbench, name: str) -> None:
    workbench.registry.delete_adapter(workbench.registry.find(Adapter, name).id or 0)


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
