"""One run: its state and progress, what can be asked of it, curve, samples, log, options and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from app.service.workbench import Workbench
from app.web.parts.curve import run_curve, run_log, run_samples
from app.web.parts.label_view import label_values, label_view
from app.web.parts.panes import ask_first, bar
from app.web.parts.routes import there
from app.web.parts.shell import WORKING, Shell, inform, offered, refusal, told, values_of
from app.web.sections.runs.chosen_runs import STORE, ids_of, one_of, runs_of
from app.web.sections.runs.control import run_control
from app.web.sections.runs.rank_map import rank_chart, ranks_drawn
from app.web.sections.runs.run_markup import checkpoint_choices, checkpoints_html, history_html, options_html
from core.train.objectives import OBJECTIVES
from storage.tables import RESUMABLE_STATES, Checkpoint, Run

_FROM_HERE = (
    "Go on from this checkpoint? What the run has learnt behind it is forgotten, with its later checkpoints."
)


def one_run(shell: Shell, chosen: gr.HTML) -> None:
    """Lay out the view of one run and bind its handlers."""
    workbench = shell.workbench
    shown = gr.State(())
    with gr.Column(visible=False, elem_classes="run-view") as view:
        control = run_control(shell, chosen)
        with gr.Tabs():
            with gr.Tab("Curve"):
                run_curve(STORE)
            with gr.Tab("Labels", visible=False) as labels:
                by_label = label_view()
            with gr.Tab("Ranks", visible=False) as spread:
                by_layer = rank_chart()
            with gr.Tab("Samples") as samples:
                run_samples(STORE)
            with gr.Tab("Log"):
                run_log(STORE)
            with gr.Tab("Options and changes"):
                options, history = gr.HTML(), gr.HTML()
            with gr.Tab("Checkpoints"):
                saved, *asked = _checkpoints(shell, chosen)
    tabs = [labels, samples, spread, by_layer]
    outputs = [shown, view, *control.outputs, options, history, saved, *asked, *tabs, *by_label]

    def show(keys: str, before: tuple[object, ...], saved_now: int | None) -> list[object]:
        run = next(iter(runs_of(workbench, keys)), None) if len(ids_of(keys)) == 1 else None
        if run is None:
            return [(), gr.Column(visible=False), *[gr.skip()] * (len(outputs) - 2)]
        now = _fingerprint(workbench, run)
        if now == tuple(before):  # the browser pays for each output
            return [gr.skip()] * len(outputs)
        rows = workbench.registry.checkpoints.of(run.id or 0)
        return [
            now,
            gr.Column(visible=True),
            *control.answer(run),
            options_html(workbench, run),
            history_html(workbench, run),
            # Not with none: a field that goes out of sight would keep the old value, which is no choice then.
            _offered(rows, saved_now, same=bool(before) and before[0] == run.id) if rows else gr.skip(),
            gr.Row(visible=bool(rows)),
            gr.Row(visible=run.state in RESUMABLE_STATES),
            checkpoints_html(rows),
            gr.Tab(visible=classifies(run)),
            gr.Tab(visible=not classifies(run)),
            *ranks_drawn(workbench, run),
            *label_values(workbench.registry.measurements.last_label_table(run.id or 0)),
        ]

    shell.refresh(show, [chosen, shown, saved], outputs)


def classifies(run: Run) -> bool:
    """Whether it learns to tell labels."""
    objective = OBJECTIVES.all().get(run.config.get("train", {}).get("objective", "sft"))
    return objective is not None and objective.classifies


def _offered(rows: Sequence[Checkpoint], current: int | None, *, same: bool) -> gr.Dropdown:
    """The checkpoints to choose from: of the same run what was chosen stays, else it is the newest."""
    choices = checkpoint_choices(rows)
    ids = values_of(choices)
    return offered(choices, current if same and current in ids else next(iter(ids), None), current)


def _fingerprint(workbench: Workbench, run: Run) -> tuple[object, ...]:
    """All that the view shows beside what it fetches by itself."""
    saved = tuple(one.id for one in workbench.registry.checkpoints.of(run.id or 0))
    order = tuple(one.id for one in workbench.registry.queue.waiting())
    about = run.model_dump(exclude={"details", "energy_joules"})
    table = workbench.registry.measurements.last_label_table(run.id or 0)
    ranks = workbench.registry.measurements.last_ranks(run.id or 0)
    return run.id, repr(about), saved, order, table.id if table else None, ranks


def _checkpoints(shell: Shell, chosen: gr.HTML) -> tuple[Any, ...]:
    """The choice of one, the row of what can be done with it, the part of that which needs a run that can go
    on, and the table of all.
    """
    workbench = shell.workbench
    with bar() as asked:
        saved = gr.Dropdown([], label="Checkpoint", interactive=True, min_width=260)
        keep = gr.Button("Keep as an adapter", size="md", scale=0)
        talk = gr.Button("Keep and chat", size="md", scale=0)
        with gr.Row(elem_classes="action-bar") as goes_on:
            resumed = ask_first(
                "resume-run",
                "Rewind and resume …",
                _FROM_HERE,
                lambda keys, checkpoint: _step_of(workbench, checkpoint),
                lambda step, keys, checkpoint: _resume(workbench, keys, step),
                [chosen, saved],
            )
    table = gr.HTML()
    shell.soon(resumed)

    @told
    def keep_it(checkpoint: int | None) -> None:
        inform(f"Kept as the adapter {_kept(workbench, checkpoint)}.")

    shell.soon(keep.click(keep_it, saved, None, **WORKING))
    talk.click(
        told(lambda checkpoint: there("playground", adapter=_kept(workbench, checkpoint))),
        saved,
        shell.go,
        **WORKING,
    )
    return saved, asked, goes_on, table


def _kept(workbench: Workbench, checkpoint: int | None) -> str:
    """The name of the adapter that a checkpoint has become."""
    if not checkpoint:
        raise refusal("Choose a checkpoint first.")
    row = workbench.runs.checkpoint(checkpoint)
    return workbench.runs.keep(row.run_id, row.step).name


def _step_of(workbench: Workbench, checkpoint: int | None) -> int:
    """The step of the checkpoint that is asked about."""
    if not checkpoint:
        raise refusal("Choose a checkpoint first.")
    return workbench.runs.checkpoint(checkpoint).step


def _resume(workbench: Workbench, keys: str, step: int) -> None:
    workbench.runs.resume(one_of(keys), step)
