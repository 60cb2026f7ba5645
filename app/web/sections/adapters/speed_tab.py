"""The chosen adapter's speed: beside its base, and merged into it."""

from __future__ import annotations

import gradio as gr

from app.web.parts.choice import adapter_called
from app.web.parts.job_result import starts_job
from app.web.parts.latency_view import latency_html
from app.web.parts.panes import bar
from app.web.parts.shell import Shell, refusal
from storage.tables import Job


def speed_tab(shell: Shell, chosen: gr.HTML) -> None:
    """Lay it out and bind it."""
    workbench = shell.workbench
    with bar():
        measure = gr.Button("Measure its speed", size="md", scale=0)
    table = gr.HTML()

    def begin(name: str) -> Job:
        if not name:
            raise refusal("Choose an adapter in the list first.")
        return workbench.costs.measure(name)

    def show(name: str) -> str:
        row = adapter_called(workbench.registry, name)
        return latency_html(workbench.costs.latency(row)) if row else ""

    starts_job(shell, measure.click, begin, [chosen])
    shell.refresh(show, [chosen], [table])
