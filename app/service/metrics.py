"""The figures that a run's objective names beside the loss, as they are shown. Knows nothing of Gradio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.train.objectives import OBJECTIVES, Metric
from storage.registry import Registry
from storage.tables import Point, Run


def metrics_of(run: Run) -> Sequence[Metric]:
    """What the run's objective names; nothing where its plug-in is not here any more, though what was
    measured is kept.
    """
    objective = OBJECTIVES.all().get(run.config.get("train", {}).get("objective", "sft"))
    return objective.metrics if objective is not None else ()


def last_metrics(registry: Registry, run: Run) -> list[dict[str, Any]]:
    """Each of them with how it is to be read, and its last values: of a step, and of an evaluation."""
    run_id = run.id or 0
    step, judged = registry.measurements.last_point(run_id), registry.measurements.last_evaluation(run_id)
    return [
        {
            "name": metric.name,
            "label": metric.label,
            "unit": metric.unit,
            "lower_is_better": metric.lower_is_better,
            "train": _value(step, metric),
            "validation": _value(judged, metric),
        }
        for metric in metrics_of(run)
    ]


def _value(point: Point | None, metric: Metric) -> float | None:
    return (point.metrics or {}).get(metric.name) if point is not None else None
