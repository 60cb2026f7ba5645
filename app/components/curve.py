"""The live loss curve: a Plotly chart that fetches its own new points and keeps its zoom."""

from __future__ import annotations

from importlib import resources
from typing import Any

import gradio as gr

from app.service import Workbench
from storage.errors import NotFound
from storage.tables import Point, Run

MOST_POINTS = 2000  # in one answer; the page asks again at once for the rest


def loss_curve(workbench: Workbench) -> gr.HTML:
    """A component whose value is the id of the run it shows."""

    def points(request: dict[str, Any]) -> dict[str, Any]:
        return curve_points(workbench, int(request["run"]), int(request["after"]))

    script = (resources.files("assets") / "curve.js").read_text(encoding="utf-8")
    return gr.HTML(
        value="", label="Loss curve", html_template="<div class='curve-slot'></div>", js_on_load=script,
        server_functions=[points], elem_id="loss-curve",
    )  # fmt: skip


def curve_points(workbench: Workbench, run_id: int, after: int) -> dict[str, Any]:
    """What the page needs to bring its curve up to date: the run's state and all points after id `after`."""
    try:
        run = workbench.registry.get(Run, run_id)
    except NotFound:
        return {"state": "", "reason": "", "total_steps": None, "points": [], "more": False}
    found = workbench.registry.points(run_id, after, MOST_POINTS)
    return {
        "state": run.state,
        "reason": run.reason,
        "total_steps": run.details.get("total_steps"),
        "points": [_row(point) for point in found],
        "more": len(found) == MOST_POINTS,
    }


def _row(point: Point) -> list[float | int | None]:
    return [
        point.id, point.step, point.loss, point.validation_loss, point.learning_rate, point.grad_norm,
        point.tokens_per_second, point.memory_bytes, point.seconds_left,
    ]  # fmt: skip
