"""Starting what the form describes."""

from __future__ import annotations

import gradio as gr

from app.web.parts.curve import MOST_RUNS
from app.web.parts.routes import there
from app.web.parts.shell import WORKING, Shell, told
from app.web.sections.train.form import TrainForm, require_chosen
from app.web.sections.train.form_values import FormValues


def bind_start(shell: Shell, form: TrainForm, start: gr.Button) -> None:
    """Queue what the form says, and lead to it. A second press while the first is on its way does nothing."""
    training = shell.workbench.training

    @told
    def begin(
        base: str | None, dataset: str | None, options: str, name: str, together: bool, anyway: bool
    ) -> tuple[str, str]:
        require_chosen(base, dataset)
        said = FormValues.read(options)
        what = str(base), str(dataset), said.parsed()
        if said.sweep:
            started = training.sweep(*what, said.sweep, name.strip(), anyway=anyway)
        else:
            started = [training.start(*what, name.strip(), together=together, anyway=anyway)]
        return "", there("runs", name=",".join(str(run.id) for run in started[:MOST_RUNS]))

    inputs = [*form.training, form.name, form.together, form.anyway]
    outputs = [form.name, shell.go]
    shell.soon(start.click(begin, inputs, outputs, concurrency_id="start", trigger_mode="once", **WORKING))
