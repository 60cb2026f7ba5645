"""Export: an adapter merged into its base, as a model that other software loads, with the result of a check."""

from __future__ import annotations

from html import escape

import gradio as gr

from app.components.markup import check_badge, day, empty, size
from app.components.shell import WORKING, Shell, choose_from, refusal, told
from app.service import Workbench
from storage.tables import Adapter, Export, Job

TAB, TITLE = "export", "Export"


def build(shell: Shell) -> None:
    """Lay out the tab and bind its handlers."""
    workbench = shell.workbench
    gr.Markdown(
        "Merges the adapter into a copy of its base: **W + (α/r)BA** in float32, cast once. "
        "The result is loaded again from disk and its logits are compared with base + adapter. "
        "The folder loads with plain transformers and with servers that read safetensors."
    )
    with gr.Row(equal_height=True):
        adapter = gr.Dropdown([], label="Adapter", interactive=True, scale=3)
        go = gr.Button("Export merged model", variant="primary", scale=0, min_width=200, elem_id="export-button")
    done = gr.HTML()

    def show(now: str) -> tuple[object, ...]:
        return choose_from([row.name for row in workbench.registry.all(Adapter)], now), exports_html(workbench)

    shell.refresh(show, [adapter], [adapter, done])

    @told
    def start(name: str | None) -> None:
        if not name:
            raise refusal("Train or import an adapter first.")
        workbench.export(name)
        gr.Info("Merging; its progress is shown above.", title="Export started")

    go.click(start, adapter, **WORKING)


def exports_html(workbench: Workbench) -> str:
    """All exports, newest first, each with its check in words; and exports that failed."""
    failed = [
        job
        for job in workbench.registry.all(Job, limit=50)
        if job.kind == "export_adapter" and job.state in ("failed", "interrupted")
    ]
    notices = "".join(
        f"<p><span class='state bad'>{job.state}</span> {escape(job.title)}: {escape(job.message)}</p>" for job in failed[:3]
    )
    rows = "".join(
        f"<tr><td>{escape(one.adapter_name)}</td><td>{escape(one.base_name)}</td><td>{check_badge(one.passed)}</td>"
        f"<td>{escape(one.sentence)}</td><td class='mono'>{escape(one.folder)}</td><td>{size(one.size_bytes)}</td>"
        f"<td>{day(one.created)}</td></tr>"
        for one in workbench.registry.all(Export, limit=100)
    )
    if not rows:
        return notices + empty("Nothing exported yet.")
    head = "".join(
        f"<th scope='col'>{title}</th>"
        for title in ("Adapter", "Base model", "Check", "What was compared", "Folder", "Size", "Date")
    )
    return f"{notices}<div class='card'><table class='rows'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
