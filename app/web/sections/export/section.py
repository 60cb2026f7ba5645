"""Export: an adapter merged into its base or alone, for other software, with the result of a check."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.markup import day, empty, size
from app.web.parts.options_form import option_fields
from app.web.parts.shell import WORKING, Shell, choose_from, inform, refusal, told
from core.export.config import export_options
from storage.tables import FAILED, INTERRUPTED, NOT_PASSED, PASSED, Adapter, Export, Job

TAB, TITLE = "export", "Export"
_KINDS = {PASSED: "good", NOT_PASSED: "bad"}


def build(shell: Shell) -> None:
    """Lay out the tab and bind its handlers."""
    workbench = shell.workbench
    gr.Markdown(
        "A merged model is **W + (α/r)BA**, added in float32 and rounded once. Whatever is exported is "
        "loaded again from disk "
        "in a process of its own and compared with base + adapter before you rely on it."
    )
    with gr.Row(equal_height=True):
        adapter = gr.Dropdown([], label="Adapter", interactive=True, scale=3)
        go = gr.Button("Export", variant="primary", scale=0, min_width=160, elem_id="export-button")
    fields = option_fields(export_options(), per_row=3)
    done = gr.HTML()

    def show(now: str) -> tuple[object, ...]:
        return choose_from([row.name for row in workbench.registry.all(Adapter)], now), exports_html(
            workbench
        )

    shell.refresh(show, [adapter], [adapter, done])
    names = list(fields)

    @told
    def start(name: str | None, *values: Any) -> None:
        if not name:
            raise refusal("Choose an adapter first; where there is none, train or import one.")
        workbench.exports.start(name, None, dict(zip(names, values, strict=True)))
        inform("Its progress is shown above.", "Export started")

    go.click(start, [adapter, *fields.values()], None, **WORKING)


def exports_html(workbench: Workbench) -> str:
    """All exports, newest first, each with its check in words; and exports that failed."""
    failed = [
        job
        for job in workbench.registry.all(Job, limit=50)
        if job.kind == "export_adapter" and job.state in (FAILED, INTERRUPTED)
    ]
    notices = "".join(
        f"<p><span class='state bad'>{job.state}</span> {escape(job.title)}: {escape(job.message)}</p>"
        for job in failed[:3]
    )
    rows = "".join(_row(one) for one in workbench.registry.all(Export, limit=100))
    if not rows:
        return notices + empty("Nothing exported yet.")
    columns = ("Adapter", "Base model", "Format", "Check", "Result", "Folder", "Size", "Date")
    head = "".join(f"<th>{name}</th>" for name in columns)
    table = f"<table class='rows exports'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"{notices}<div class='wide'>{table}</div>"


def _row(one: Export) -> str:
    badge = f"<span class='state {_KINDS.get(one.verdict, 'calm')}'>{escape(one.verdict)}</span>"
    rounding = one.check.get("rounding_loss")
    lost = f" Rounding took {rounding:.2%} of the adapter." if rounding else ""
    there = Path(one.folder).is_dir()
    link = (
        f"<br><a href='/workbench/exports/{one.id}.zip' download>Download as zip</a>" if there else "<br>gone"
    )
    return (
        f"<tr><td>{escape(one.adapter_name)}</td><td>{escape(one.base_name)}</td><td>{escape(one.format)}</td><td>{badge}</td>"
        f"<td>{escape(one.sentence)}{lost}</td><td "
        f"class='mono'>{escape(one.folder)}{link}</td><td>{size(one.size_bytes)}</td>"
        f"<td>{day(one.created)}</td></tr>"
    )
