"""What stands above the sections: the name, what the engine is doing, and what is under way."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.activity import activity_html, end_work
from app.web.parts.routes import link
from app.web.parts.scripts import script
from app.web.parts.tab_news import tab_news
from storage.tables import QUEUED, Run


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

    def end(key: str) -> str:
        return end_work(workbench, key)

    return gr.HTML(
        _masthead(""),
        html_template="<div class='head-slot'>${value}</div>",
        js_on_load=script("head.js"),
        server_functions=[news, end],
        elem_id="head",
    )


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
            name = link(status["resident"], "models", name=status["resident"])
            chips.append(
                f"<span class='chip'><span class='quiet'>Base</span> <b>{name}</b> "
                f"<span class='quiet'>{escape(status['dtype'])}</span></span>"
            )
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
        "<header id='masthead'><h1>LoRA Workbench</h1>"
        f"<div class='status' role='status'>{chips}</div>"
        "<button type='button' class='small' data-opens='keys' aria-label='Keys'>?</button>"
        "<button id='theme-button' type='button' class='small' aria-label='Switch between light and dark'>◐"
        "</button></header>"
    )


def _run_chip(workbench: Workbench, runs: list[Run]) -> str:
    """What is being trained: one run with its step, or how many at once."""
    run = runs[0]
    point = workbench.registry.measurements.last_point(run.id or 0)
    total = run.details.get("total_steps")
    where = f"step {point.step} of {total}" if point and total else run.state
    name = run.name if len(runs) == 1 else f"{len(runs)} adapters at once"
    shown = link(name, "runs", name=run.id or 0)
    return (
        f"<span class='chip'><span class='quiet'>Training</span> <b>{shown}</b> "
        f"<span class='quiet'>{where}</span></span>"
    )
