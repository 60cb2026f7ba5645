"""The sheet that exports an adapter: which, as what, where to, and what will be written."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from app.service.workbench import Workbench
from app.shared.bases import closest_base
from app.web.parts.choice import adapter_called, adapters_like, choice
from app.web.parts.job_result import starts_job
from app.web.parts.markup import facts, size
from app.web.parts.options_form import option_field
from app.web.parts.panes import bar
from app.web.parts.routes import wish
from app.web.parts.shell import FOLLOWING, QUIET, QUIET_QUEUED, Shell, refusal
from core.export.config import export_options
from core.export.formats import AUTO, EXPORT_FORMATS, ExportFormat
from storage.tables import Adapter, Base, Job

_BITS = {
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "q8_0": 8.5,
    "q5_1": 6,
    "q5_0": 5.5,
    "q4_1": 5,
    "q4_0": 4.5,
}


def export_sheet(shell: Shell, section: str, opened: gr.Button) -> None:
    """Lay out the form and bind its handlers. `opened` opens it, with the newest adapter if none is chosen
    yet.
    """
    workbench = shell.workbench
    wished = wish(section, "adapter")
    adapter = choice(
        "export-adapter", "Adapter", lambda asked: adapters_like(workbench.registry, asked.words)
    )
    fields = _option_fields()
    folder = gr.Textbox(value="", label="Folder", info="A new one. Empty: under exports in the home folder.")
    preview = gr.HTML()
    with bar():
        go = gr.Button("Export", variant="primary", size="md", scale=0, elem_id="export-button")

    def show(name: str, *values: Any) -> tuple[object, ...]:
        """What was chosen and is gone is not replaced by another. Where nothing is, somebody may have chosen
        while this was on its way.
        """
        if not name:
            return gr.skip(), gr.skip()
        gone = adapter_called(workbench.registry, name) is None
        return "" if gone else gr.skip(), preview_html(workbench, "" if gone else name, *values)

    told_of: list[Any] = [fields["format"], fields["dtype"], folder]
    shell.refresh(show, [adapter, *told_of], [adapter, preview])
    events = [adapter.submit, *[one.change for one in told_of]]

    def look(*values: Any) -> str:
        return preview_html(workbench, *values)

    gr.on(events, look, [adapter, *told_of], preview, **FOLLOWING)

    def newest(name: str) -> str:
        return name or next((one for one, _ in adapters_like(workbench.registry, "")), "")

    begun = opened.click(newest, adapter, adapter, **QUIET_QUEUED)
    begun.then(look, [adapter, *told_of], preview, **QUIET)
    shown = wished.submit(lambda name: name, wished, adapter, **QUIET_QUEUED)
    shown.then(look, [adapter, *told_of], preview, **QUIET)
    wished.submit(None, None, None, js="() => window.workbench.openSheet('export-adapter')", **QUIET)

    def start(name: str, where: str, *values: Any) -> Job:
        if not name:
            raise refusal("Choose an adapter first; where there is none, train or import one.")
        target = Path(where.strip()).expanduser() if where.strip() else None
        return workbench.exports.start(name, target, dict(zip(fields, values, strict=True)))

    starts_job(shell, go.click, start, [adapter, folder, *fields.values()], closes="export-adapter")


def _option_fields() -> dict[str, Component]:
    """The format with a line about each, and the options that it has."""
    chosen, *others = export_options()
    kinds = EXPORT_FORMATS.all().values()
    format = gr.Dropdown(
        [(f"{kind.label}: {kind.help}", kind.name) for kind in kinds],
        value=chosen.default,
        label=chosen.label,
        interactive=True,
    )
    fields = {one.name: option_field(one) for one in others}

    def fitting(name: str, dtype: str) -> list[object]:
        kind = EXPORT_FORMATS.get(name)
        return [
            _dtypes(kind, dtype),
            *[type(fields[one.name])(visible=_has(kind, one.name)) for one in others[1:]],
        ]

    first = EXPORT_FORMATS.get(chosen.default)
    for one in others[1:]:
        fields[one.name].visible = _has(first, one.name)
    format.change(fitting, [format, fields["dtype"]], list(fields.values()), **QUIET)
    return {chosen.name: format, **fields}


def _dtypes(kind: ExportFormat, now: str) -> gr.Dropdown:
    """The number formats that a format can hold; nothing to choose where that is one."""
    value = now if now in kind.dtypes else AUTO
    return gr.Dropdown(choices=list(kind.dtypes), value=value, visible=len(kind.dtypes) > 1 and kind.merges)


def _has(kind: ExportFormat, option: str) -> bool:
    return option in {one.name for one in kind.options.options()}


def preview_html(workbench: Workbench, adapter: str, format: str, dtype: str, folder: str) -> str:
    """What will be written, how large, and where to."""
    row = adapter_called(workbench.registry, adapter)
    if row is None:
        return ""
    kind, base = EXPORT_FORMATS.get(format), closest_base(workbench.registry, row)
    if base is None:
        return (
            f"<p class='fault'>{escape(row.base_name)}, which {escape(row.name)} belongs to, is not here.</p>"
        )
    about = _bytes(kind, dtype, row, base)
    target = Path(folder.strip()).expanduser() if folder.strip() else None
    occupied = target is not None and target.exists() and (not target.is_dir() or any(target.iterdir()))
    warned = "<p class='fault'>There is something in this folder; choose a new one.</p>" if occupied else ""
    rows = [
        ("What", kind.describe(base.name, row.name)),
        ("Size", f"about {size(about)}" if about else ""),
        ("Where", target or workbench.settings.exports),
        ("And", "it becomes a base model here, to chat with and to train on" if kind.is_base else ""),
    ]
    return f"{facts(rows, 'What will be written')}{warned}"


def _bytes(kind: ExportFormat, dtype: str, row: Adapter, base: Base) -> float | None:
    """How large the weights will be, as far as that is known."""
    if not kind.merges:
        return 4 * row.parameters
    if dtype == AUTO and kind.is_base:
        return base.size_bytes
    bits = _BITS["float16"] if dtype == AUTO and kind.ending == ".gguf" else _BITS.get(dtype)
    return bits * base.parameters / 8 if bits else None
