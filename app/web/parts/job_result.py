"""Results of jobs, read from the job table: so they are there after a reload, and in a second tab."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from app.web.parts.activity import line_here
from app.web.parts.panes import close_sheet
from app.web.parts.shell import WORKING, Shell, told
from storage.registry import Registry
from storage.tables import FINISHED, Job

Render = Callable[[dict[str, Any]], tuple[object, ...]]
_LOOKED_AT = 5  # jobs that did not finish, behind which an earlier result is still found
_TRIED = 30  # choices to which one can come back and still find what was found of them


def last_result(
    registry: Registry, kind: str, about: Mapping[str, object] | None = None, since: float = 0.0
) -> tuple[str, Job | None]:
    """What to say of the newest job of a kind, and the newest that has finished."""
    jobs = registry.jobs.of(kind, about, since, _LOOKED_AT)
    return said_of(jobs[0] if jobs else None), next((one for one in jobs if one.state == FINISHED), None)


def result_of_choice(
    registry: Registry,
    kind: str,
    is_of_choice: Callable[[Job], bool],
    about: Mapping[str, object] | None = None,
    since: float = 0.0,
) -> tuple[str, Job | None]:
    """The same of what is entered now: a result of another choice would be taken for its own. Nor is there
    one while a job is under way, whatever that is of.
    """
    jobs = registry.jobs.of(kind, about, since, _TRIED)
    if jobs and jobs[0].active:
        return said_of(jobs[0]), None
    own = [one for one in jobs if is_of_choice(one)]
    return said_of(own[0] if own else None), next((one for one in own if one.state == FINISHED), None)


def said_of(job: Job | None) -> str:
    """Where a job is, with a way to end it, or why it gave nothing, as HTML; empty if it went well."""
    if job is None or job.state == FINISHED:
        return ""
    if job.active:
        return line_here(job)
    return f"<p class='fault'>{escape(job.title)}: {escape(job.message)}</p>"


def starts_job(
    shell: Shell,
    trigger: Callable[..., Dependency],
    start: Callable[..., Job | None],
    inputs: Sequence[Component],
    closes: str = "",
    begun: gr.State | None = None,
) -> None:
    """On an event, such as a button's click, start(*values of inputs), and look at once for what follows.

    closes: the sheet to close where the job has started. begun: what holds the number of that job.
    """

    def begin(*values: Any) -> object:
        job = start(*values)
        if begun is None:
            return None
        return gr.skip() if job is None else job.id

    started = trigger(told(begin), list(inputs), begun, **WORKING)
    if closes:
        close_sheet(started, closes)
    shell.soon(started)


def job_result(shell: Shell, kind: str, render: Render, said: gr.HTML, outputs: Sequence[Component]) -> None:
    """Keep `said` and, by render(its result), `outputs` at the newest job of a kind."""

    def show() -> tuple[object, ...]:
        words, done = last_result(shell.workbench.registry, kind)
        return words, *(render(done.result) if done else [gr.skip()] * len(outputs))

    shell.refresh(show, [], [said, *outputs])
