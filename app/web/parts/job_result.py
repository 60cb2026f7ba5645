"""A button that starts a job, and the place where its result appears: also after a reload of the work, not of
the page.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from app.web.parts.shell import WORKING, Shell, told
from storage.errors import NotFound
from storage.tables import FINISHED, Job

Render = Callable[[dict[str, Any]], tuple[object, ...]]


def job_button(
    shell: Shell,
    button: gr.Button,
    start: Callable[..., Job],
    inputs: Sequence[Component],
    render: Render,
    said: gr.HTML,
    outputs: Sequence[Component],
) -> None:
    """On a click start(*values of inputs); when the job has ended render(its result) fills `outputs`.

    Where the job is, and why it failed, is told in `said`.
    """
    asked = gr.State(0)

    def begin(*values: Any) -> tuple[int, str]:
        job = start(*values)
        return job.id or 0, "<p class='hint'>Under way; its progress is shown at the top.</p>"

    # Looked at again at once: the job may have ended before it was known here which one is waited for.
    shell.soon(button.click(told(begin), list(inputs), [asked, said], **WORKING))

    def look(job_id: int) -> tuple[object, ...]:
        nothing = [gr.skip()] * len(outputs)
        try:
            job = shell.workbench.registry.get(Job, job_id) if job_id else None
        except NotFound:
            job = None
        if job is None or job.active:
            return gr.skip(), gr.skip(), *nothing
        if job.state != FINISHED:
            return 0, f"<p class='fault'>{escape(job.message)}</p>", *nothing
        return 0, "", *render(job.result)

    shell.refresh(look, [asked], [asked, said, *outputs])
