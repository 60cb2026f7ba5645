"""Runs beside each other: how they differ, how they ended, what they cost. Knows nothing of Gradio."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.service.runs import options_of
from storage.registry import Registry
from storage.tables import Point, Run

_MEASURED_ON = (
    "base_model",
    "data",
    "max_length",
    "over_length",
)  # decide which tokens a loss is the mean of
_UNINTERESTING = (
    "sample_prompts",
    "sample_tokens",
    "resume_at_start",
    "save_steps",
    "save_minutes",
    "save_best",
)


@dataclass(frozen=True)
class Compared:
    """One run of a comparison."""

    run: Run
    options: Mapping[str, Any]
    """Those in which the runs differ; base_model and data among them if they do."""
    train_loss: float | None
    validation_loss: float | None
    best_validation_loss: float | None
    steps: int
    seconds: float | None
    tokens: int | None
    kilowatt_hours: float | None
    parameters: int | None = None
    """That it trains; None before it was prepared."""

    @property
    def score(self) -> float:
        """What it is judged by: the best validation loss, or the last training loss where there is none."""
        return next(
            (one for one in (self.best_validation_loss, self.train_loss) if one is not None), math.inf
        )

    def record(self) -> dict[str, Any]:
        """As one flat row."""
        return {
            "id": self.run.id,
            "name": self.run.name,
            "state": self.run.state,
            **self.options,
            "steps": self.steps,
            "train_loss": self.train_loss,
            "validation_loss": self.validation_loss,
            "best_validation_loss": self.best_validation_loss,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "kilowatt_hours": self.kilowatt_hours,
        }


@dataclass(frozen=True)
class Comparison:
    """Several runs, the best first; those without a validation loss behind those that have one."""

    rows: list[Compared]
    same: Mapping[str, Any]
    """Options that are the same in all."""

    @property
    def differing(self) -> list[str]:
        """The options in which the runs differ."""
        return list(self.rows[0].options) if self.rows else []

    @property
    def caveats(self) -> list[str]:
        """Why the order says less than it seems to, in sentences."""
        said = []
        if names := [name for name in self.differing if name in _MEASURED_ON]:
            said.append(
                f"The runs differ in {' and '.join(names)}: their losses are means over different tokens, "
                "so the lowest need not be the best."
            )
        unmeasured = [one.run.name for one in self.rows if one.best_validation_loss is None]
        if 0 < len(unmeasured) < len(self.rows):
            said.append(f"Without a validation loss, and therefore last: {', '.join(unmeasured)}.")
        elif len(unmeasured) > 1:
            said.append(
                "None has a validation loss, so the last training loss decides, which knows nothing of "
                "overfitting."
            )
        return said


def compare(registry: Registry, run_ids: Sequence[int]) -> Comparison:
    """Put runs beside each other. Raises NotFound."""
    rows = [registry.get(Run, run_id) for run_id in dict.fromkeys(run_ids)]
    options = {
        row.id: {
            "base_model": row.base_name,
            "data": f"{row.dataset_name} v{row.dataset_version}",
            **options_of(row),
        }
        for row in rows
    }
    names = list(
        dict.fromkeys(name for one in options.values() for name in one if name not in _UNINTERESTING)
    )
    differing = [name for name in names if len({repr(one.get(name)) for one in options.values()}) > 1]
    ids = [row.id or 0 for row in rows]
    best, last = registry.measurements.best_losses(ids), registry.measurements.last_points(ids)
    found = [
        _compared(
            registry,
            row,
            {name: options[row.id].get(name) for name in differing},
            last.get(row.id or 0),
            best.get(row.id or 0),
        )
        for row in rows
    ]
    first = options[rows[0].id] if rows else {}
    same = {name: first[name] for name in names if name not in differing and name in first}
    return Comparison(sorted(found, key=lambda one: (one.best_validation_loss is None, one.score)), same)


def _compared(
    registry: Registry, run: Run, options: Mapping[str, Any], last: Point | None, best: float | None
) -> Compared:
    judged = registry.measurements.last_evaluation(run.id or 0)
    return Compared(
        run=run,
        options=options,
        train_loss=last.loss if last else None,
        validation_loss=judged.validation_loss if judged else None,
        best_validation_loss=best,
        steps=last.step if last else 0,
        seconds=last.seconds if last else None,
        tokens=last.tokens if last else None,
        kilowatt_hours=run.kilowatt_hours,
        parameters=run.details.get("trainable_parameters"),
    )
