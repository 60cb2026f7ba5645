"""Runs: the queue in its order, everything that was trained, and runs beside each other."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import gradio as gr

from app.service.comparing import compare
from app.service.workbench import Workbench
from app.web.parts.catalogue import Catalogue, Words
from app.web.parts.markup import day, duration, number
from app.web.parts.shell import QUIET, WORKING, Shell, choose_many, inform, refusal, told
from app.web.sections.runs.comparison import comparison_html, heat_map, parallel_coordinates
from app.web.sections.train.run_controls import run_choices, run_html
from core.train.training_options import TrainingOptions
from storage.tables import ACTIVE_STATES, IDLE_STATES, QUEUED, Adapter, Run

TAB, TITLE = "runs", "Runs"
_WORDS = Words(
    label="Runs",
    columns=("Run", "Name", "State", "Queue", "Step", "Train loss", "Best validation", "Time", "Started"),
    nothing="No run yet. Start one under Train.",
    remove="Remove",
    question="Remove this run with its curve, log and checkpoints? Its adapter stays. This cannot be undone.",
)
_MOST_SHOWN = 500
_MOST_COMPARED = 64


def build(shell: Shell) -> None:
    """Lay out the tab and bind its handlers."""
    workbench = shell.workbench
    followers: list[tuple[gr.Button, Callable[[int], object]]] = []

    def actions(chosen: gr.State) -> None:
        runs = workbench.runs
        for text, what in (("Show", "show"), ("Duplicate with changes", "duplicate")):
            button = gr.Button(text, scale=0, min_width=90 if what == "show" else 210)
            button.click(functools.partial(_wish, what), chosen, [shell.tabs, shell.to_train], **WORKING)
        for text, target in (("First", _first), ("Earlier", _earlier), ("Later", _later)):
            followers.append(
                (gr.Button(text, scale=0, min_width=80), functools.partial(_move, workbench, target))
            )
        acts = (("Pause", runs.pause), ("Resume", runs.resume), ("Stop and keep", _stopping(workbench)))
        for text, act in acts:
            followers.append((gr.Button(text, scale=0, min_width=90 if len(text) < 8 else 140), act))

    catalogue = Catalogue(
        shell,
        _WORDS,
        rows=lambda: run_rows(workbench),
        number=int,
        remove=lambda run: workbench.runs.remove(int(run)),
        actions=actions,
        describe=lambda run: run_html(workbench, workbench.registry.get(Run, int(run))),
        show_search="search",
        max_chars=60,
        wrap=True,
    )
    for button, act in followers:
        catalogue.follow(
            button.click(_acting(act), catalogue.chosen, None, concurrency_id="control", **WORKING)
        )
    _comparison(shell, catalogue.chosen)


def _acting(act: Callable[[int], object]) -> Callable[[str], None]:
    def handler(run: str) -> None:
        act(int(run))

    return told(handler)


def _wish(what: str, run: str) -> tuple[object, ...]:
    return gr.Tabs(selected="train"), (what, int(run), time.time())


def _stopping(workbench: Workbench) -> Callable[[int], object]:
    def stop(run_id: int) -> None:
        run = workbench.registry.get(Run, run_id)
        if run.state not in (*ACTIVE_STATES, *IDLE_STATES):
            raise refusal(f"Run {run_id} ({run.name}) is {run.state}, so there is nothing to stop.")
        workbench.runs.stop(run_id)

    return stop


def _first(place: int) -> int:
    return 0


def _earlier(place: int) -> int:
    return place - 1


def _later(place: int) -> int:
    return place + 1


def _move(workbench: Workbench, target: Callable[[int], int], run_id: int) -> None:
    order = [run.id for run in workbench.registry.queue.waiting()]
    workbench.runs.move(run_id, target(order.index(run_id)) if run_id in order else 0)


def run_rows(workbench: Workbench) -> list[list[str]]:
    """Those that wait first, in the queue's order, then the others, the newest first."""
    registry = workbench.registry
    waiting = registry.queue.waiting()
    places = {run.id: place for place, run in enumerate(waiting, start=1)}
    others = [run for run in registry.all(Run, limit=_MOST_SHOWN) if run.state != QUEUED]
    runs = [*waiting, *others]
    best = registry.measurements.best_losses([run.id or 0 for run in runs])
    last = registry.measurements.last_points([run.id or 0 for run in runs])
    return [_cells(run, places.get(run.id), last.get(run.id or 0), best.get(run.id or 0)) for run in runs]


def _cells(run: Run, place: int | None, last: Any, best: float | None) -> list[str]:
    total = run.details.get("total_steps")
    step = f"{last.step if last else 0:,}{f' / {total:,}' if total else ''}"
    state = run.state if not run.reason else f"{run.state}: {run.reason}"
    return [
        str(run.id),
        run.name,
        state,
        str(place or ""),
        step,
        number(last.loss if last else None),
        number(best),
        duration(last.seconds if last else None),
        day(run.started),
    ]


def _comparison(shell: Shell, chosen: gr.State) -> None:
    workbench = shell.workbench
    with gr.Column(visible=False) as section:
        gr.Markdown("#### Compare runs")
        with gr.Row(equal_height=True, elem_classes="asked"):
            ids = gr.Dropdown(
                [],
                label="Runs to compare",
                multiselect=True,
                max_choices=_MOST_COMPARED,
                interactive=True,
                scale=5,
            )
            sweep = gr.Button("The whole sweep", scale=1, min_width=130)
            chat = gr.Button("Chat with the best", variant="primary", scale=1, min_width=150)
            preset = gr.Button("Make it the preset", scale=1, min_width=150)
        table = gr.HTML()
        with gr.Row():
            lines, heat = (
                gr.Plot(label=text, show_label=False, visible=False)
                for text in ("Parallel coordinates", "Heat map")
            )

    def offer(now: list[int]) -> tuple[object, ...]:
        there = run_choices(workbench)
        return gr.Column(visible=bool(there)), choose_many(there, now)

    @told
    def show(now: list[int]) -> tuple[object, ...]:
        found = compare(workbench.registry, now or [])
        drawn = [parallel_coordinates(found), heat_map(found)]
        return comparison_html(found), *[gr.Plot(value=one, visible=one is not None) for one in drawn]

    @told
    def take_sweep(now: list[int], run: str) -> list[int]:
        start = int(run) if run else next(iter(now or []), None)
        if start is None:
            raise refusal("Choose a run of the sweep first, in the table or below.")
        wanted = workbench.registry.get(Run, start).sweep
        if not wanted:
            raise refusal(f"Run {start} is not part of a sweep.")
        return [one.id or 0 for one in reversed(workbench.registry.runs.of_sweep(wanted))]

    def best_of(now: list[int]) -> Run:
        found = compare(workbench.registry, now or [])
        if not found.rows or not math.isfinite(found.rows[0].score):
            raise refusal("Choose runs to compare first, of which one has been measured.")
        return found.rows[0].run

    @told
    def talk(now: list[int]) -> tuple[object, ...]:
        best = best_of(now)
        if best.adapter_id is None:
            raise refusal(f"{best.name} has no adapter; keep one of its checkpoints under Train.")
        return gr.Tabs(selected="playground"), workbench.registry.get(Adapter, best.adapter_id).name

    @told
    def keep(now: list[int]) -> None:
        best = best_of(now)
        options = TrainingOptions.parse(workbench.runs.options(best.id or 0))
        path = workbench.presets.save(best.name, options, f"The options of run {best.id}.")
        inform(f"Saved as the preset {best.name} ({path.name}); choose it under Train.")

    shown = [table, lines, heat]
    shell.refresh(offer, [ids], [section, ids])
    ids.change(show, ids, shown, **QUIET)
    # Where nothing is chosen nothing is drawn: a figure brings a large script with it.
    shell.refresh(lambda now: show(now) if now else tuple(gr.skip() for _ in shown), [ids], shown)
    sweep.click(take_sweep, [ids, chosen], ids, **WORKING)
    chat.click(talk, ids, [shell.tabs, shell.to_chat], **WORKING)
    preset.click(keep, ids, None, **WORKING)
