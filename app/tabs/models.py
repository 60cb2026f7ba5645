"""Models: the base models, how to add one, and what each is."""

from __future__ import annotations

import gradio as gr

from app.components.markup import day, empty, facts, size
from app.components.shell import QUIET, WORKING, Shell, refusal, selected_name, told
from app.service import Workbench
from storage.errors import NotFound
from storage.tables import Base

TAB, TITLE = "models", "Models"
_HEADERS = ["Name", "Architecture", "Parameters", "Dtype", "Context", "Size", "Source", "Fingerprint"]


def build(shell: Shell) -> None:
    """Lay out the tab and bind its handlers."""
    workbench = shell.workbench
    with gr.Row(equal_height=True):
        origin = gr.Textbox(
            label="Add a base model", scale=3,
            info="A folder of safetensors, a .gguf file, or a hub id such as HuggingFaceTB/SmolLM2-360M-Instruct.",
        )  # fmt: skip
        name = gr.Textbox(label="Name", info="Empty: taken from the source.", scale=1)
        with gr.Column(scale=0, min_width=220):
            add = gr.Button("Add", variant="primary")
            starter = gr.Button("Add the starter model")
    table = gr.Dataframe(headers=_HEADERS, interactive=False, label="Base models", show_label=False, wrap=False)
    nothing = gr.HTML(empty("No base model yet. The starter model is one click away."))
    chosen = gr.State("")
    with gr.Column(visible=False) as about:
        detail = gr.HTML()
        with gr.Row():
            verify = gr.Button("Verify fingerprint", scale=0, min_width=170)
            remove = gr.Button("Remove …", variant="stop", scale=0, min_width=120)
        with gr.Row(visible=False, elem_classes="danger-zone") as confirm:
            gr.Markdown("Remove this base model? Files that the workbench downloaded or converted are deleted.")
            yes = gr.Button("Remove it", variant="stop", scale=0, min_width=120)
            no = gr.Button("Keep it", scale=0, min_width=120)

    def show() -> tuple[object, ...]:
        rows = _rows(workbench)
        return gr.Dataframe(value=rows, visible=bool(rows)), gr.HTML(visible=not rows)

    def show_detail(model: str) -> tuple[object, ...]:
        try:
            html = detail_html(workbench.registry.find(Base, model)) if model else ""
        except NotFound:
            html = ""
        return gr.Column(visible=bool(html)), html

    def show_chosen(name: str) -> tuple[object, ...]:
        return *show_detail(name), gr.Row(visible=False)  # a question about another one is off the table

    shell.refresh(show, [], [table, nothing])
    shell.refresh(show_detail, [chosen], [about, detail])

    @told
    def start(source: str, wanted: str) -> tuple[str, str]:
        if not source.strip():
            raise refusal("Give a folder, a .gguf file or a hub id first.")
        workbench.add_model(source.strip(), wanted.strip())
        return "", ""

    @told
    def start_starter() -> None:
        workbench.add_model("starter")

    @told
    def check(model: str) -> None:
        gr.Info(f"Unchanged: {workbench.verify_model(model)[:16]}…")

    @told
    def drop(model: str) -> str:
        workbench.remove_model(model)
        return ""

    add.click(start, [origin, name], [origin, name], **WORKING)
    origin.submit(start, [origin, name], [origin, name], **WORKING)
    starter.click(start_starter, **WORKING)
    table.select(selected_name, None, chosen, **QUIET).then(show_chosen, chosen, [about, detail, confirm], **QUIET)
    verify.click(check, chosen, **WORKING)
    remove.click(lambda: gr.Row(visible=True), None, confirm, **QUIET)
    no.click(lambda: gr.Row(visible=False), None, confirm, **QUIET)
    yes.click(drop, chosen, chosen, **WORKING).success(show, None, [table, nothing], **QUIET).then(
        show_chosen, chosen, [about, detail, confirm], **QUIET
    )


def _rows(workbench: Workbench) -> list[list[str]]:
    return [
        [base.name, base.architecture, f"{base.parameters / 1e6:,.1f} M", base.dtype, f"{base.context_length:,}",
         size(base.size_bytes), base.source, base.fingerprint[:12]]
        for base in workbench.registry.all(Base)
    ]  # fmt: skip


def detail_html(base: Base) -> str:
    """Everything known of one base model."""
    template = "its own" if base.has_chat_template else "none of its own: the plain one is used (### User: … ### Assistant: …)"
    return facts([
        ("Architecture", base.architecture), ("Parameters", f"{base.parameters:,}"), ("Dtype", base.dtype),
        ("Context length", f"{base.context_length:,} tokens"), ("Layers", base.layers), ("Hidden size", base.hidden_size),
        ("Linear layers", len(base.layer_shapes)), ("Chat template", template), ("Licence", base.licence or "not stated"),
        ("Size", size(base.size_bytes)), ("Source", f"{base.source}: {base.origin}"), ("Folder", base.folder),
        ("Fingerprint", base.fingerprint), ("Tokenizer", base.tokenizer_hash[:16]), ("Added", day(base.created)),
    ], base.name)  # fmt: skip
