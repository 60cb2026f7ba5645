"""Several runs side by side: their curves, a table of results, how they differ, which option matters."""

from __future__ import annotations

import math

import gradio as gr

from app.service.comparing import Comparison, compare
from app.service.workbench import Workbench
from app.web.parts.chart import chart, drawn
from app.web.parts.curve import MOST_RUNS, run_curve
from app.web.parts.panes import bar
from app.web.parts.routes import there
from app.web.parts.shell import QUIET, WORKING, Shell, inform, refusal, told
from app.web.sections.runs.chosen_runs import STORE, ids_of, runs_of
from app.web.sections.runs.comparison import options_html, results_html
from app.web.sections.runs.comparison_charts import heat_map, parallel_coordinates, quality_against_cost
from app.web.sections.runs.run_markup import adapter_of
from core.train.training_options import TrainingOptions
from storage.tables import Run

_FEW = (
    "<p class='hint'>Drawn once two runs that differ in an option have been measured; the heat map, once "
    "they differ in two.</p>"
)
_ONE_SIZE = (
    "<p class='hint'>Drawn once two runs that train different numbers of parameters have a validation "
    "loss.</p>"
)


def compared_runs(shell: Shell, chosen: gr.HTML) -> None:
    """Lay out the comparison and bind its handlers."""
    workbench = shell.workbench
    with gr.Column(visible=False, elem_classes="run-view") as view:
        with bar():
            chat = gr.Button("Chat with the best", variant="primary", size="md", scale=0)
            preset = gr.Button("Make its options a preset", size="md", scale=0)
            sweep = gr.Button("Take the whole sweep", size="md", scale=0)
        with gr.Tabs():
            with gr.Tab("Curves"):
                drawn_of = gr.HTML()
                run_curve(STORE)
            with gr.Tab("Results"):
                results = gr.HTML()
            with gr.Tab("Differences"):
                everything = gr.Checkbox(
                    value=False, label="Options that are the same in all as well", container=False
                )
                options = gr.HTML()
            with gr.Tab("What matters"):
                few = gr.HTML()
                lines, heat = chart("Options and loss of each run"), chart("Lowest loss by two options")
            with gr.Tab("Quality and cost"):
                dear = gr.HTML()
                cost = chart("Validation loss over trained parameters")
    outputs = [view, drawn_of, sweep, results, options, few, lines, heat, dear, cost]

    def show(keys: str, every: bool) -> list[object]:
        if len(ids_of(keys)) < 2:
            return [gr.Column(visible=False), *[gr.skip()] * (len(outputs) - 1)]
        found = compare(workbench.registry, [run.id or 0 for run in runs_of(workbench, keys)])
        figures, priced = (parallel_coordinates(found), heat_map(found)), quality_against_cost(found)
        return [
            gr.Column(visible=True),
            _left_out(len(found.rows)),
            gr.Button(visible=_more_of_its_sweep(workbench, [one.run for one in found.rows])),
            results_html(found),
            options_html(found, every=every),
            "" if all(figures) else _FEW,
            *[drawn(one) for one in figures],
            "" if priced else _ONE_SIZE,
            drawn(priced),
        ]

    shell.refresh(show, [chosen, everything], outputs)
    everything.change(
        lambda keys, every: options_html(_comparison(workbench, keys), every=every),
        [chosen, everything],
        options,
        **QUIET,
    )
    chat.click(told(lambda keys: _talk(workbench, keys)), chosen, shell.go, **WORKING)
    preset.click(told(lambda keys: _keep(workbench, keys)), chosen, None, **WORKING)
    shell.soon(sweep.click(told(lambda keys: _whole_sweep(workbench, keys)), chosen, chosen, **WORKING))


def _left_out(count: int) -> str:
    if count <= MOST_RUNS:
        return ""
    return f"<p class='hint'>The best {MOST_RUNS} of {count} are drawn; the other tabs have all of them.</p>"


def _more_of_its_sweep(workbench: Workbench, runs: list[Run]) -> bool:
    sweep = next((run.sweep for run in runs if run.sweep), "")
    here = {run.id for run in runs}
    return bool(sweep) and any(one.id not in here for one in workbench.registry.runs.of_sweep(sweep))


def _comparison(workbench: Workbench, keys: str) -> Comparison:
    return compare(workbench.registry, [run.id or 0 for run in runs_of(workbench, keys)])


def _best(workbench: Workbench, keys: str) -> Run:
    found = _comparison(workbench, keys)
    if not found.rows or not math.isfinite(found.rows[0].score):
        raise refusal("None of these runs has been measured yet; wait for their first step.")
    return found.rows[0].run


def _talk(workbench: Workbench, keys: str) -> str:
    best = _best(workbench, keys)
    adapter = adapter_of(workbench, best)
    if adapter is None:
        raise refusal(f"{best.name} is the best, and has no adapter; keep one of its checkpoints first.")
    return there("playground", adapter=adapter.name)


def _keep(workbench: Workbench, keys: str) -> None:
    best = _best(workbench, keys)
    options = TrainingOptions.parse(workbench.runs.options(best.id or 0))
    path = workbench.presets.save(best.name, options, f"The options of run {best.id}.")
    inform(f"Saved as the preset {best.name} ({path.name}); choose it under Train.")


def _whole_sweep(workbench: Workbench, keys: str) -> str:
    """The runs of the sweep that the first chosen one of any is part of."""
    sweep = next((run.sweep for run in runs_of(workbench, keys) if run.sweep), "")
    if not sweep:
        raise refusal("None of these runs is part of a sweep.")
    return ",".join(str(one.id) for one in workbench.registry.runs.of_sweep(sweep))
