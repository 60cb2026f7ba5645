"""Starting what the form describes, and bringing another run's options into it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from app.web.parts.routes import there, wish
from app.web.parts.shell import WORKING, Shell, told
from app.web.sections.train.form import TrainForm, require_chosen
from app.web.sections.train.form_values import grid_of, parsed
from storage.tables import Run


def bind_start(shell: Shell, form: TrainForm, start: gr.Button) -> None:
    """Queue what the form says, and lead to the runs."""
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
        return "", there("runs", name=",".join(str(run.id) for run in started))

    inputs = {**form.inputs, "name": form.name, "together": form.together}
    start.click(begin, None, [form.name, shell.go], inputs_kwargs=inputs, concurrency_id="start", **WORKING)


def bind_duplicates(shell: Shell, form: TrainForm) -> None:
    """Another section wants a run's options put into the form."""
    runs, registry, fields = shell.workbench.runs, shell.workbench.registry, list(form.options.values())
    wished = wish("train", "from")

    @told
    def bring(run_id: str) -> tuple[object, ...]:
        row = registry.get(Run, int(run_id))
        return row.base_name, row.dataset_name, *form.values(runs.options(int(run_id)))

    wished.submit(bring, wished, [form.base, form.dataset, *fields], **WORKING)
