"""Results of jobs, read from the job table: so they are there after a reload, and in a second tab."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from app.web.parts.panes import close_sheet
from app.web.parts.shell import WORKING, Shell, told
from storage.registry import Registry
from storage.tables import FINISHED, Job

Render = Callable[[dict[str, Any]], tuple[object, ...]]
_LOOKED_AT = 5  # jobs that did not finish, behind which an earlier result is still found


def last_result(
    registry: Registry, kind: str, about: Mapping[str, object] | None = None, since: float = 0.0
) -> tuple[str, Job | None]:
    """What to say of the newest job of a kind, and the newest that has finished."""
    jobs = registry.jobs.of(kind, about, since, _LOOKED_AT)
    return said_of(jobs[0] if jobs else None), next((one for one in jobs if one.state == FINISHED), None)


def said_of(job: Job | None) -> str:
    """Where a job is, or why it gave nothing, as HTML; nothing of one that went well."""
    if job is None or job.state == FINISHED:
        return ""
    if job.active:
        return "<p class='hint'>Under way; its progress is shown at the top.</p>"
    return f"<p class='fault'>{escape(job.title)}: {escape(job.message)}</p>"


def starts_job(
    shell: Shell,
    trigger: Callable[..., Dependency],
    start: Callable[..., Job | None],
    inputs: Sequence[Component],
    closes: str = "",
) -> None:
    """On an event, such as a button's click, start(*values of inputs), and look at once for what follows.

    closes: the sheet to close where the job has started.
    """

    def begin(*values: Any) -> None:
        start(*values)

    started = trigger(told(begin), list(inputs), None, **WORKING)
    if closes:
        close_sheet(started, closes)
    shell.soon(started)


def job_result(shell: Shell, kind: str, render: Render, said: gr.HTML, outputs: Sequence[Component]) -> None:
    """Keep `said` and, by render(its result), `outputs` at the newest job of a kind."""

    def show() -> tuple[object, ...]:
        words, done = last_result(shell.workbench.registry, kind)
        return words, *(render(done.result) if done else [gr.skip()] * len(outputs))

    shell.refresh(show, [], [said, *outputs])
