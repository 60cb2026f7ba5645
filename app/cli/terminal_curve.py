"""A run's curve in the terminal, drawn anew while it grows."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console as RichConsole
from rich.live import Live
from rich.text import Text

from app.service.metrics import metrics_of
from app.service.workbench import Workbench
from storage.tables import Point, Run

_SECONDS = 1.0
_WIDTH, _HEIGHT = 100, 24


def watch_run(workbench: Workbench, run_id: int) -> None:
    """Follow a run to its end; the last picture stays.

    Into a pipe only that one is written. Raises NotFound.
    """
    console = RichConsole(highlight=False)
    points: list[Point] = []
    started: float | None = None
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            workbench.look_after()
            run = workbench.registry.get(Run, run_id)
            if run.started != started:  # it goes on from a checkpoint: what was measured behind it comes anew
                points, started = [], run.started
            points += workbench.registry.measurements.points(
                run_id, after=points[-1].id or 0 if points else 0
            )
            if sys.stdout.isatty() or not run.active:
                size = (
                    (min(console.width, _WIDTH), min(console.height - 2, _HEIGHT))
                    if sys.stdout.isatty()
                    else (_WIDTH, _HEIGHT)
                )
                live.update(Text.from_ansi(picture(run, points, *size)), refresh=True)
            if not run.active:
                return
            time.sleep(_SECONDS)


def picture(run: Run, points: Sequence[Point], width: int, height: int) -> str:
    """The losses of a run as text, under a line that says how it stands, and the further charts that its
    objective names.
    """
    losses = {
        "train loss": [(one.step, one.loss) for one in points if one.loss is not None],
        "validation loss": [
            (one.step, one.validation_loss) for one in points if one.validation_loss is not None
        ],
    }
    charts = [losses, *_metric_charts(run, points)]
    drawn = [_chart(lines, width, (height - 1) // len(charts)) for lines in charts if any(lines.values())]
    return "\n".join([_headline(run, points), *(drawn or ["Nothing measured yet."])])


Lines = dict[str, list[tuple[int, float]]]
"""(step, value) by label."""


def _metric_charts(run: Run, points: Sequence[Point]) -> list[Lines]:
    """The lines of each chart that the run's objective asks for."""
    charts: dict[str, Lines] = {}
    for metric in metrics_of(run):
        for point in points:
            value = (point.metrics or {}).get(metric.name)
            if value is not None:
                label = f"{metric.label}{' (validation)' if point.loss is None else ''}"
                lines = charts.setdefault(metric.title, {})
                lines.setdefault(label, []).append((point.step, value))
    return list(charts.values())


def _chart(lines: Lines, width: int, height: int) -> str:
    import plotext

    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(width, max(8, height))
    plotext.xlabel("step")
    for label, pairs in lines.items():
        if pairs:
            plotext.plot([step for step, _ in pairs], [value for _, value in pairs], label=label)
    return str(plotext.build())


def _headline(run: Run, points: Sequence[Point]) -> str:
    last = next((one for one in reversed(points) if one.loss is not None), None)
    total = run.details.get("total_steps")
    parts = [f"Run {run.id} ({run.name}): {run.state}{f', {run.reason}' if run.reason else ''}"]
    if last is not None:
        parts.append(f"step {last.step}{f' of {total}' if total else ''}")
        parts.append(f"loss {last.loss:.4f}")
        measured = last.metrics or {}
        parts += [
            f"{metric.label} {metric.shown(measured[metric.name])}"
            for metric in metrics_of(run)
            if metric.name in measured
        ]
        parts.append(f"{last.tokens_per_second or 0:,.0f} tokens/s")
    return "  ".join(parts)
