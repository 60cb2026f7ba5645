"""The live view of a run: a Plotly chart, samples and the log, which fetch what is new by themselves."""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources
from typing import Any

import gradio as gr

from app.service.metrics import metrics_of
from app.service.workbench import Workbench
from storage.errors import NotFound
from storage.tables import Run

MOST_POINTS = 2000  # of a run in one answer; the page asks again at once for the rest
MOST_RUNS = 16  # in one chart
COLUMNS = (
    "id",
    "step",
    "loss",
    "validation_loss",
    "learning_rate",
    "grad_norm",
    "tokens_per_second",
    "memory_bytes",
    "seconds_left",
    "tokens",
    "seconds",
    "metrics",
)
_DETAILS = ("total_steps", "operations_a_token", "operations_a_second")


def run_view(workbench: Workbench) -> gr.HTML:
    """A component whose value lists numbers of runs: the one it shows, then those laid over it."""

    def news(request: dict[str, Any]) -> dict[str, Any]:
        return run_news(workbench, request)

    folder = resources.files("assets")
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in ("curve.js", "run_panels.js"))
    return gr.HTML(
        value="",
        label="Loss curve",
        html_template="<div class='curve-slot'></div>",
        js_on_load=script,
        server_functions=[news],
        elem_id="loss-curve",
    )


def run_news(workbench: Workbench, request: dict[str, Any]) -> dict[str, Any]:
    """What a page needs to bring its view up to date.

    The request: `runs` as pairs of a run's number and the id of the last point that the page has, `main` the
    run whose samples and notes are shown from behind the ids `samples` and `notes`, and when that run had
    `started` then.
    """
    runs = [
        (int(run_id), run_points(workbench, int(run_id), int(after)))
        for run_id, after in request["runs"][:MOST_RUNS]
    ]
    main = int(request["main"] or 0)
    started = next((about["started"] for run_id, about in runs if run_id == main), None)
    anew = started is not None and started != request.get(
        "started"
    )  # it went on from a checkpoint: later samples are gone
    samples = workbench.registry.measurements.samples(main, 0 if anew else int(request["samples"]))
    notes = workbench.registry.measurements.notes(main, int(request["notes"]))
    return {
        "runs": runs,
        "anew": anew,
        "samples": [[one.id, one.step, one.prompt, one.text] for one in samples],
        "notes": [[one.id, one.at, one.kind, one.text] for one in notes],
    }


def run_points(workbench: Workbench, run_id: int, after: int) -> dict[str, Any]:
    """A run's state, and its points after id `after`."""
    try:
        run = workbench.registry.get(Run, run_id)
    except NotFound:
        return {
            "name": "",
            "state": "",
            "reason": "",
            "started": None,
            "metrics": [],
            "points": [],
            "more": False,
        }
    points = workbench.registry.measurements.point_values(run_id, COLUMNS, after, MOST_POINTS)
    return {
        "name": run.name,
        "state": run.state,
        "reason": run.reason,
        "started": run.started,
        "energy": run.energy_joules,
        **{name: run.details.get(name) for name in _DETAILS},
        "metrics": [asdict(one) | {"title": one.title} for one in metrics_of(run)],
        "points": points,
        "more": len(points) == MOST_POINTS,
    }
