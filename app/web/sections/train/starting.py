"""Starting what the form describes, and bringing another run's options into it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.web.parts.shell import WORKING, Shell, told
from app.web.sections.train.form import TrainForm, require_chosen
from app.web.sections.train.form_values import grid_of, parsed
from app.web.sections.train.run_controls import RunPanel
from storage.tables import Run


def bind_start(shell: Shell, form: TrainForm, start: gr.Button, panel: RunPanel) -> None:
    """Queue what the form says, and show the first run."""
    workbench = shell.workbench

    @told
    def begin(
        base: str, dataset: str, name: str, sweep: str, together: bool, **values: Any
    ) -> tuple[object, ...]:
        require_chosen(base, dataset)
        options = parsed(values)
        if sweep.strip():
            started = workbench.training.sweep(base, dataset, options, grid_of(sweep), name.strip())
        else:
            started = [workbench.training.start(base, dataset, options, name.strip(), together=together)]
        return "", *panel.show(started[0].id, [run.id or 0 for run in started[1:]])

    inputs = {**form.inputs, "name": form.name, "together": form.together}
    shell.soon(
        start.click(
            begin, None, [form.name, *panel.outputs], inputs_kwargs=inputs, concurrency_id="start", **WORKING
        )
    )


def bind_duplicates(shell: Shell, form: TrainForm, panel: RunPanel) -> None:
    """Another section wants a run shown, or its options put into the form."""
    runs, registry, fields = shell.workbench.runs, shell.workbench.registry, list(form.options.values())

    @told
    def bring(wish: tuple[str, int]) -> tuple[object, ...]:
        what, run_id = wish[0], int(wish[1])
        row = registry.get(Run, run_id)
        untouched = [gr.skip()] * (2 + len(fields))
        if what == "show":
            return *untouched, *panel.show(run_id, [])
        return (row.base_name, row.dataset_name, *form.values(runs.options(run_id)), *panel.show(run_id, []))

    outputs = [form.base, form.dataset, *fields, *panel.outputs]
    shell.soon(shell.to_train.change(bring, shell.to_train, outputs, **WORKING))
