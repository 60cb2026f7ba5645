"""Jobs that have no place of their own: a form for each, built from what its kind says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from app.jobs.kinds import JobKind
from app.service.workbench import Workbench
from app.web.parts.job_result import job_result, starts_job
from app.web.parts.markup import facts
from app.web.parts.options_form import option_fields
from app.web.parts.shell import Shell
from storage.tables import Job


def other_jobs(shell: Shell) -> None:
    """Lay out the forms; nothing at all where every kind has a place of its own, as without plug-ins."""
    offered = shell.workbench.jobs.offered()
    if not offered:
        return
    with gr.Accordion("Other jobs", open=False):
        for kind in offered:
            _form(shell, kind)


def _form(shell: Shell, kind: JobKind) -> None:
    with gr.Group():
        gr.HTML(f"<h3>{escape(kind.label)}</h3><p class='hint'>{escape(kind.help)}</p>")
        fields = option_fields(kind.options.options(), per_row=4)
        start = gr.Button("Start", scale=0, min_width=110, elem_id=f"job-{kind.name}")
        said, result = gr.HTML(), gr.HTML()

    def begin(*values: Any) -> Job:
        return start_job(shell.workbench, kind, list(fields), values)

    starts_job(shell, start.click, begin, list(fields.values()))
    job_result(shell, kind.name, render, said, [result])


def start_job(workbench: Workbench, kind: JobKind, names: Sequence[str], values: Sequence[Any]) -> Job:
    """Start a job with what stands in the fields of its form. Raises what makes it impossible."""
    return workbench.jobs.start_offered(kind.name, dict(zip(names, values, strict=True)))


def render(result: dict[str, Any]) -> tuple[object, ...]:
    """What a job has given, as a card."""
    return (facts(list(result.items()), "Done"),)
