"""The page: masthead, what is under way, and one tab for each part of the work."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape

import gradio as gr

from app.components.markup import job_bar, job_failure
from app.components.shell import QUIET, Shell, told
from app.service import Workbench
from app.tabs import adapters, data, export, home, models, playground, runs, train
from storage.tables import QUEUED, Run

_PARTS = (home, models, data, train, runs, adapters, playground, export)
_TICK_SECONDS = 1.0
_ALWAYS = (train.TAB, playground.TAB)  # opened with a wish of another section, which a refresh then would undo
_FAILURE_SECONDS = 300.0  # how long a failed job stays in sight


def build_page(workbench: Workbench) -> gr.Blocks:
    """All of the page, bound to one Workbench."""
    with gr.Blocks(title="LoRA Workbench", analytics_enabled=False, fill_width=True) as page:
        masthead = gr.HTML(masthead_html(workbench))
        activity = gr.HTML(activity_html(workbench), elem_id="activity")
        cancel = gr.Button("Cancel", variant="stop", size="sm", visible=False, elem_id="cancel-job")
        # Outside of the tabs: each child of gr.Tabs counts as a tab.
        section, changed, to_chat, to_train = gr.State(_PARTS[0].TAB), gr.State(""), gr.State(""), gr.State(("", 0, 0.0))
        changes = {part.TAB: gr.State("") for part in _PARTS}
        memory = gr.BrowserState("home", storage_key="lora-workbench-tab", secret="tab")
        with gr.Tabs(elem_id="sections") as tabs:
            shell = Shell(workbench, page, tabs, changed, to_chat, to_train)
            for part in _PARTS:
                with gr.Tab(part.TITLE, id=part.TAB) as tab:
                    own = replace(shell, changed=changes[part.TAB], refreshes=[])
                    part.build(own)
                    own.follow()
                opened = functools.partial(_opened, workbench, part.TAB)
                # One after the other, so that the one opened last is the open one.
                one_at_a_time = QUIET | {"queue": True, "concurrency_id": "section"}
                tab.select(opened, [section, changes[part.TAB]], [section, memory, changes[part.TAB]], **one_at_a_time)
        _keep_up_to_date(shell, section, changes, [masthead, activity])
        _offer_to_cancel(shell, cancel)
        shell.follow()
        # Nothing to do for Home, where the page opens: a click made meanwhile must not be undone.
        page.load(lambda tab: gr.skip() if tab == "home" else gr.Tabs(selected=tab), memory, tabs, **QUIET)
    return page


def _opened(workbench: Workbench, tab: str, before: str, seen: str) -> tuple[object, ...]:
    """A section was opened: it is brought up to date, kept so, and a reload comes back to it.

    A page that opens says so of Home, before it goes to where the reload was made; that is not to be remembered.
    """
    count = workbench.registry.change_count()
    remembered = gr.skip() if tab == before else tab
    return remembered, remembered, gr.skip() if count == seen or tab in _ALWAYS else count


def _keep_up_to_date(shell: Shell, section: gr.State, changes: Mapping[str, gr.State], head: Sequence[gr.HTML]) -> None:
    """One timer for the whole page: a cheap look, and news only where there is any.

    Most sections hear that the registry has changed while they are open, or when they are opened: a browser that brings
    all of them up to date at once is busy for a second.
    """
    shown = gr.State(("", ""))

    def tick(now_open: str, before: tuple[str, str], everywhere: str, *seen: str) -> list[object]:
        now = (masthead_html(shell.workbench), activity_html(shell.workbench))
        count = shell.workbench.registry.change_count()
        return [
            gr.skip() if now == tuple(before) else now,
            gr.skip() if count == everywhere else count,
            *[
                count if count != known and tab in (now_open, *_ALWAYS) else gr.skip()
                for tab, known in zip(changes, seen, strict=True)
            ],
            *[gr.skip() if new == old else new for new, old in zip(now, before, strict=True)],
        ]

    timer = gr.Timer(_TICK_SECONDS)
    # Queued, because Gradio reports a changed gr.State to the browser on that path only.
    states = [shown, shell.changed, *changes.values()]
    timer.tick(tick, [section, *states], [*states, *head], concurrency_limit=None, **(QUIET | {"queue": True}))


def _offer_to_cancel(shell: Shell, cancel: gr.Button) -> None:
    """A button for the job that has been going on longest."""

    def show() -> gr.Button:
        jobs = shell.workbench.registry.active_jobs()
        return gr.Button(f"Cancel: {jobs[0].title[:60]}" if jobs else "Cancel", visible=bool(jobs))

    def end() -> None:
        for job in shell.workbench.registry.active_jobs()[:1]:
            shell.workbench.cancel_job(job)

    shell.refresh(show, [], [cancel])
    cancel.click(told(end), None, None, concurrency_id="cancel", **QUIET | {"queue": True})


def masthead_html(workbench: Workbench) -> str:
    """The name, and in a few words what the engine is doing."""
    status = workbench.engine.status()
    chips = []
    if status is None:
        chips.append("<span class='chip'><span class='quiet'>Engine</span> <b>asleep</b></span>")
    else:
        chips.append(f"<span class='chip'><span class='quiet'>Device</span> <b>{escape(status['device'])}</b></span>")
        if status["resident"]:
            resident = f"{escape(status['resident'])}</b> <span class='quiet'>{escape(status['dtype'])}</span>"
            chips.append(f"<span class='chip'><span class='quiet'>Resident base</span> <b>{resident}</span>")
        if status["disk_full"]:
            chips.append("<span class='chip bad' role='alert'><b>The disk is full: training waits until there is room</b></span>")
        if status["measuring"]:
            chips.append("<span class='chip'><b>Measuring a run</b></span>")
        if status["notice"]:
            chips.append(f"<span class='chip' title='{escape(status['notice'])}'><b>Decoding without compiled layers</b></span>")
    under_way = [run for run in workbench.registry.active_runs() if run.state != QUEUED]
    chips += [_run_chip(workbench, under_way)] if under_way else []
    return (
        "<header id='masthead'><img src='/workbench/icon.svg' alt=''><h1>LoRA Workbench</h1>"
        f"<div class='status' role='status'>{''.join(chips)}</div>"
        "<button id='theme-button' type='button' aria-label='Switch between light and dark'>◐ Theme</button></header>"
    )


def _run_chip(workbench: Workbench, runs: list[Run]) -> str:
    """What is being trained: one run with its step, or how many at once."""
    run = runs[0]
    point = workbench.registry.last_point(run.id or 0)
    total = run.details.get("total_steps")
    where = f"step {point.step} of {total}" if point and total else run.state
    name = escape(run.name) if len(runs) == 1 else f"{len(runs)} adapters at once"
    return f"<span class='chip'><span class='quiet'>Training</span> <b>{name}</b> <span class='quiet'>{where}</span></span>"


def activity_html(workbench: Workbench) -> str:
    """The jobs that are under way, each with its progress, and those that failed lately, each with its reason."""
    lines = [job_bar(job) for job in workbench.registry.active_jobs()]
    lines += [job_failure(job) for job in workbench.registry.failed_jobs(since=time.time() - _FAILURE_SECONDS)]
    return f"<div class='activity'>{''.join(lines)}</div>"
