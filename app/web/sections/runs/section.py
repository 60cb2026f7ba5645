"""Runs: all of them on the left, and on the right the chosen one, or several compared."""

from __future__ import annotations

import gradio as gr

from app.service.comparing import compare
from app.service.workbench import Workbench
from app.web.parts.curve import MOST_RUNS, run_head
from app.web.parts.panes import left, right, split
from app.web.parts.picker import picker
from app.web.parts.routes import there
from app.web.parts.shell import QUIET, Shell
from app.web.sections.runs.chosen_runs import STORE, ids_of, runs_of
from app.web.sections.runs.compared_runs import compared_runs
from app.web.sections.runs.listing import find
from app.web.sections.runs.one_run import one_run

TAB, TITLE = "runs", "Runs"
_NOTHING = "No run yet. Choose a base and data under Train, and start one."


def build(shell: Shell) -> None:
    """Lay out the section and bind its handlers."""
    with split(TAB):
        with left():
            start = gr.Button("New run", variant="primary", size="md", scale=0)
            chosen = picker(
                shell,
                TAB,
                "Runs",
                lambda query: find(shell.workbench, query),
                _NOTHING,
                search="Search runs",
                several=True,
            )
        with right():
            head = run_head(shell.workbench, STORE)
            one_run(shell, chosen)
            compared_runs(shell, chosen)
    shell.refresh(lambda keys: _shown(shell.workbench, keys), [chosen], [head])
    start.click(lambda: there("train"), None, shell.go, **QUIET)


def _shown(workbench: Workbench, keys: str) -> str:
    """The runs that are drawn: the one that is chosen, or of several the best."""
    if len(ids_of(keys)) < 2:
        return keys
    found = compare(workbench.registry, [run.id or 0 for run in runs_of(workbench, keys)])
    return ",".join(str(one.run.id) for one in found.rows[:MOST_RUNS])
