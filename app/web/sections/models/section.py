"""Models: the base models on the left, the chosen one on the right; adding one in a sheet."""

from __future__ import annotations

from html import escape

import gradio as gr

from app.service.workbench import Workbench
from app.shared.bases import experts_of, shapes_of
from app.web.parts.markup import day, empty, facts, size, title_line
from app.web.parts.panes import ask_first, bar, close_sheet, left, opener, require_same, right, sheet, split
from app.web.parts.picker import Query, Row, Rows, matching, picker
from app.web.parts.routes import link, there
from app.web.parts.shell import WORKING, Shell, inform, refusal, told
from core.base_model.describe import writes_text
from core.base_model.packings import made_plain
from core.base_model.way import WAYS
from storage.errors import NotFound
from storage.tables import Adapter, Base

TAB, TITLE = "models", "Models"
_NOTHING = "No base model yet. Add one: the starter model is in the same sheet, one click away."
_EMPTY = empty("Choose a base model on the left, or add one.", "Add a base model …", "add-model")
_REMOVE = "Remove this base model? Files that the workbench downloaded or converted are deleted."


def build(shell: Shell) -> None:
    """Lay out the section and bind its handlers."""
    workbench = shell.workbench
    with split(TAB):
        with left():
            opener("add-model", "Add a base model", variant="primary")
            chosen = picker(
                shell,
                TAB,
                "Base models",
                lambda query: find(workbench, query),
                _NOTHING,
                search="Search models",
            )
        with right():
            _detail(shell, chosen)
    with sheet("add-model", "Add a base model"):
        _add_form(shell)


def find(workbench: Workbench, query: Query) -> Rows:
    """The rows of the list."""
    return matching([_row(base) for base in workbench.registry.all(Base)], query)


def _row(base: Base) -> Row:
    return Row(
        base.name,
        base.name,
        f"{base.architecture} · {base.source}",
        f"{base.parameters / 1e6:,.0f} M · {base.dtype}",
    )


def _detail(shell: Shell, chosen: gr.HTML) -> None:
    workbench = shell.workbench
    title = gr.HTML()
    with bar() as actions:
        train = gr.Button("Train on it", variant="primary", size="md", scale=0)
        chat = gr.Button("Chat with it", size="md", scale=0)
        verify = gr.Button("Verify fingerprint", size="md", scale=0)
        removed = ask_first(
            "remove-model",
            "Remove …",
            _REMOVE,
            lambda name: workbench.registry.find(Base, name).id,
            lambda asked, name: _remove(workbench, asked, name),
            [chosen],
        )
    about = gr.HTML()

    def show(name: str) -> tuple[object, ...]:
        try:
            base = workbench.registry.find(Base, name) if name else None
        except NotFound:  # removed meanwhile, here or elsewhere
            base = None
        if base is None:
            return "", gr.Row(visible=False), _EMPTY, gr.skip()
        return (
            title_line(base.name, [(base.dtype, "calm")]),
            gr.Row(visible=True),
            f"{facts_html(workbench, base)}{adapters_html(workbench, base)}",
            gr.Button(visible=writes_text(base.architecture)),
        )

    shell.refresh(show, [chosen], [title, actions, about, chat])
    train.click(lambda name: there("train", base=name), chosen, shell.go, **WORKING)
    chat.click(lambda name: there("playground", base=name), chosen, shell.go, **WORKING)
    verify.click(
        told(lambda name: inform(f"Unchanged: {workbench.models.verify(name)[:16]}…")), chosen, **WORKING
    )
    shell.soon(removed)


def _remove(workbench: Workbench, asked: int, name: str) -> None:
    require_same(name, asked, workbench.registry.find(Base, name).id)
    workbench.models.remove(name)


def _add_form(shell: Shell) -> None:
    workbench = shell.workbench
    starter = gr.Button("Add the starter model (SmolLM2-135M-Instruct, 93 MB)", size="md")
    origin = gr.Textbox(
        label="Or a folder, a file or a hub id",
        placeholder="/models/llama or model.gguf or HuggingFaceTB/SmolLM2-360M-Instruct",
        info="A folder of safetensors, a .gguf file, or owner/name of the Hugging Face hub; also one that "
        "bitsandbytes has packed to 4 bits.",
    )
    name = gr.Textbox(label="Name", info="Empty: taken from the source.")
    add = gr.Button("Add", variant="primary", size="md")

    @told
    def start(source: str, wanted: str) -> tuple[str, str]:
        if not source.strip():
            raise refusal("Give a folder, a .gguf file or a hub id first.")
        workbench.models.add(source.strip(), wanted.strip())
        return "", ""

    @told
    def start_starter() -> None:
        workbench.models.add("starter")

    for event in (
        add.click(start, [origin, name], [origin, name], **WORKING),
        origin.submit(start, [origin, name], [origin, name], **WORKING),
        starter.click(start_starter, None, None, **WORKING),
    ):
        close_sheet(event, "add-model")


def facts_html(workbench: Workbench, base: Base) -> str:
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
            ("Number format", base.dtype),
            ("Context length", f"{base.context_length:,} tokens"),
            *([("Computed", f"on {WAYS[base.way]}")] if base.way in WAYS else []),
            ("Layers", base.layers),
            ("Hidden size", base.hidden_size),
            ("Linear layers", len(shapes_of(base))),
            *([("Experts", experts)] if (experts := experts_of(workbench.registry, base)) else []),
            ("Chat template", template),
            ("Licence", base.licence or "not stated"),
            ("Size", size(base.size_bytes)),
            ("Source", f"{base.source}: {base.origin}"),
            *([("Made plain", plain)] if (plain := made_plain(base.source, base.dtype)) else []),
            ("Folder", base.folder),
            ("Fingerprint", base.fingerprint),
            ("Tokenizer", base.tokenizer_hash[:16]),
            ("Added", day(base.created)),
        ],
    )


def adapters_html(workbench: Workbench, base: Base) -> str:
    """The adapters that were made for this base, each a link."""
    fitting = [one for one in workbench.registry.all(Adapter) if one.base_fingerprint == base.fingerprint]
    rows = "".join(
        f"<tr><td>{link(one.name, 'adapters', name=one.name)}</td><td>{one.rank or 'whole weights'}</td>"
        f"<td>{escape(one.dataset_name or '–')}</td><td>{day(one.created)}</td></tr>"
        for one in fitting[:50]
    )
    if not rows:
        return ""
    head = "<thead><tr><th>Adapter</th><th>Rank</th><th>Data set</th><th>Made</th></tr></thead>"
    more = f"<p class='hint'>and {len(fitting) - 50} more</p>" if len(fitting) > 50 else ""
    table = f"<table class='rows'>{head}<tbody>{rows}</tbody></table>"
    return f"<div class='card'><h3>Adapters for it</h3>{table}{more}</div>"
