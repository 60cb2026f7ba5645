"""The live view of a run in parts, which are brought up to date by one of them: its head."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import gradio as gr

from app.service.metrics import metrics_of
from app.service.runs import has_prompts
from app.service.workbench import Workbench
from app.web.parts.scripts import script
from storage.errors import NotFound
from storage.tables import Run

MOST_POINTS = 10_000  # of a run in one answer; the page asks again at once for the rest
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


def run_head(workbench: Workbench, store: str) -> gr.HTML:
    """Name, state and progress of the runs whose numbers its value lists: the one it shows, then those laid
    over it.

    It fetches what is new for all parts of the view with the same `store`.
    """

    def news(request: dict[str, Any]) -> dict[str, Any]:
        return run_news(workbench, request)

    return _part("run_feed.js", "Run", store, server_functions=[news])


def run_curve(store: str) -> gr.HTML:
    """Their chart, with the figures of the one run."""
    return _part("curve.js", "Curve", store, elem_classes="curve-block")


def run_samples(store: str) -> gr.HTML:
    """What the run answered to its sample prompts."""
    return _part("run_samples.js", "Samples", store)


def run_log(store: str) -> gr.HTML:
    """What the run has said."""
    return _part("run_log.js", "Log", store)


def _part(name: str, label: str, store: str, **about: Any) -> gr.HTML:
    return gr.HTML(
        value="",
        label=label,
        html_template="<div class='run-slot'></div>",
        js_on_load=script("run_store.js", name, store=store),
        **about,
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
            "gone": True,
        }
    points = workbench.registry.measurements.point_values(run_id, COLUMNS, after, MOST_POINTS)
    return {
        "name": run.name,
        "state": run.state,
        "reason": run.reason,
        "started": run.started,
        "energy": run.energy_joules,
        "asks": has_prompts(run),
        **{name: run.details.get(name) for name in _DETAILS},
        "metrics": [asdict(one) | {"title": one.title} for one in metrics_of(run)],
        "points": points,
        "more": len(points) == MOST_POINTS,
    }
