"""What stands above the sections: the name, what the engine is doing, the jobs under way and those that
failed lately.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.markup import job_bar, job_failure
from app.web.parts.tab_news import tab_news
from storage.tables import QUEUED, Run

_FAILURE_SECONDS = 300.0  # how long a failed job stays in sight


def live_head(workbench: Workbench) -> gr.HTML:
    """A component that keeps itself up to date, and triggers `submit` when it opens and when the registry has
    changed.
    """

    def news(asked: Mapping[str, Any]) -> dict[str, Any]:
        count = workbench.changes()
        return {
            **tab_news(workbench, asked["followed"]),
            "html": head_html(workbench),
            "changes": count if count != asked["seen"] else None,
        }

    script = (resources.files("assets") / "head.js").read_text(encoding="utf-8")
    return gr.HTML(_masthead(""), js_on_load=script, server_functions=[news], elem_id="head")


def head_html(workbench: Workbench) -> str:
    """All of it."""
    return masthead_html(workbench) + activity_html(workbench)


def masthead_html(workbench: Workbench) -> str:
    """The name, and in a few words what the engine is doing."""
    status = workbench.engine.status()
    chips = []
    if status is None:
        chips.append("<span class='chip'><span class='quiet'>Engine</span> <b>asleep</b></span>")
    else:
        chips.append(
            f"<span class='chip'><span class='quiet'>Device</span> <b>{escape(status['device'])}</b></span>"
        )
        if status["resident"]:
            resident = (
                f"{escape(status['resident'])}</b> <span class='quiet'>{escape(status['dtype'])}</span>"
            )
            chips.append(f"<span class='chip'><span class='quiet'>Resident base</span> <b>{resident}</span>")
        if status["disk_full"]:
            chips.append(
                "<span class='chip bad' role='alert'><b>The disk is full: training waits until there "
                "is room</b></span>"
            )
        if status["measuring"]:
            chips.append("<span class='chip'><b>Measuring a run</b></span>")
        if status["notice"]:
            chips.append(
                f"<span class='chip' title='{escape(status['notice'])}'><b>Decoding without compiled "
                "layers</b></span>"
            )
    if fault := workbench.preferences.fault:
        chips.append(f"<span class='chip bad' role='alert'><b>{escape(fault)}</b></span>")
    under_way = [run for run in workbench.registry.runs.active() if run.state != QUEUED]
    chips += [_run_chip(workbench, under_way)] if under_way else []
    return _masthead("".join(chips))


def _masthead(chips: str) -> str:
    """Without chips as a page opens: what it is given then was written when the server started."""
    return (
        "<header id='masthead'><img src='/workbench/icon.svg' alt=''><h1>LoRA Workbench</h1>"
        f"<div class='status' role='status'>{chips}</div>"
        "<button id='theme-button' type='button' aria-label='Switch between light and dark'>◐ "
        "Theme</button></header>"
    )


def _run_chip(workbench: Workbench, runs: list[Run]) -> str:
    """What is being trained: one run with its step, or how many at once."""
    run = runs[0]
    point = workbench.registry.measurements.last_point(run.id or 0)
    total = run.details.get("total_steps")
    where = f"step {point.step} of {total}" if point and total else run.state
    name = escape(run.name) if len(runs) == 1 else f"{len(runs)} adapters at once"
    return (
        f"<span class='chip'><span class='quiet'>Training</span> <b>{name}</b> <span "
        f"class='quiet'>{where}</span></span>"
    )


def activity_html(workbench: Workbench) -> str:
    """The jobs that are under way, each with its progress, and those that failed lately, each with its
    reason.
    """
    lines = [job_bar(job) for job in workbench.registry.jobs.active()]
    lines += [
        job_failure(job) for job in workbench.registry.jobs.failed(since=time.time() - _FAILURE_SECONDS)
    ]
    return f"<div class='activity'>{''.join(lines)}</div>"
