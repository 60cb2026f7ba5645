"""Models: the base models, how to add one, and what each is."""

from __future__ import annotations

import gradio as gr

from app.service.workbench import Workbench
from app.shared.bases import experts_of
from app.web.parts.catalogue import Catalogue, Words
from app.web.parts.markup import day, facts, size
from app.web.parts.shell import WORKING, Shell, inform, refusal, told
from storage.tables import Base

TAB, TITLE = "models", "Models"
_WORDS = Words(
    label="Base models",
    columns=("Name", "Architecture", "Parameters", "Dtype", "Context", "Size", "Source", "Fingerprint"),
    nothing="No base model yet. The starter model is one click away.",
    remove="Remove",
    question="Remove this base model? Files that the workbench downloaded or converted are deleted.",
)


def build(shell: Shell) -> None:
    """Lay out the tab and bind its handlers."""
    workbench = shell.workbench
    with gr.Row(equal_height=True):
        origin = gr.Textbox(
            label="Add a base model",
            scale=3,
            info=(
                "A folder of safetensors, a .gguf file, or a hub id such as "
                "HuggingFaceTB/SmolLM2-360M-Instruct."
            ),
        )
        name = gr.Textbox(label="Name", info="Empty: taken from the source.", scale=1)
        with gr.Column(scale=0, min_width=220):
            add = gr.Button("Add", variant="primary")
            starter = gr.Button("Add the starter model")

    def verify_button(chosen: gr.State) -> None:
        verify = gr.Button("Verify fingerprint", scale=0, min_width=170)
        verify.click(check, chosen, **WORKING)

    @told
    def check(model: str) -> None:
        inform(f"Unchanged: {workbench.models.verify(model)[:16]}…")

    Catalogue(
        shell,
        _WORDS,
        rows=lambda: _rows(workbench),
        number=lambda name: workbench.registry.find(Base, name).id,
        remove=workbench.models.remove,
        actions=verify_button,
        describe=lambda name: detail_html(workbench, workbench.registry.find(Base, name)),
    )

    @told
    def start(source: str, wanted: str) -> tuple[str, str]:
        if not source.strip():
            raise refusal("Give a folder, a .gguf file or a hub id first.")
        workbench.models.add(source.strip(), wanted.strip())
        return "", ""

    @told
    def start_starter() -> None:
        workbench.models.add("starter")

    add.click(start, [origin, name], [origin, name], **WORKING)
    origin.submit(start, [origin, name], [origin, name], **WORKING)
    starter.click(start_starter, **WORKING)


def _rows(workbench: Workbench) -> list[list[str]]:
    return [
        [
            base.name,
            base.architecture,
            f"{base.parameters / 1e6:,.1f} M",
            base.dtype,
            f"{base.context_length:,}",
            size(base.size_bytes),
            base.source,
            base.fingerprint[:12],
        ]
        for base in workbench.registry.all(Base)
    ]


def detail_html(workbench: Workbench, base: Base) -> str:
    """Everything known of one base model."""
    template = (
        "its own"
        if base.has_chat_template
        else "none of its own: the plain one is used (### User: … ### Assistant: …)"
    )
    return facts(
        [
            ("Architecture", base.architecture),
            ("Parameters", f"{base.parameters:,}"),
            ("Dtype", base.dtype),
            ("Context length", f"{base.context_length:,} tokens"),
            ("Layers", base.layers),
            ("Hidden size", base.hidden_size),
            ("Linear layers", len(base.layer_shapes)),
            *([("Experts", experts)] if (experts := experts_of(workbench.registry, base)) else []),
            ("Chat template", template),
            ("Licence", base.licence or "not stated"),
            ("Size", size(base.size_bytes)),
            ("Source", f"{base.source}: {base.origin}"),
            ("Folder", base.folder),
            ("Fingerprint", base.fingerprint),
            ("Tokenizer", base.tokenizer_hash[:16]),
            ("Added", day(base.created)),
        ],
        base.name,
    )
