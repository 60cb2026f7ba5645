"""What the engine process holds of one run beside its row: measurements that wait, alerts, when it was saved;
and its words.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from core.base_model.quantisation import LABELS, NONE
from core.events import EvalDone, Prepared, StepDone
from core.train.alerts import Alert, Watch
from core.train.config import TrainConfig
from core.train.step_count import steps_between_evaluations
from core.train.training_options import TrainingOptions
from storage.tables import Point, Run


@dataclass
class RunRecord:
    """One run under way."""

    run: Run
    points: list[Point] = field(default_factory=list)
    """Measurements that wait to be written."""
    over: bool = False
    step: int = 0
    total_steps: int = 0
    validates: bool = True
    saved_step: int = 0
    saved_at: float = field(default_factory=time.monotonic)
    best: float = math.inf
    """The lowest validation loss so far."""
    wants_save: bool = False
    wants_sample: bool = False
    stopped_by: str = ""
    """The alert that ended it."""
    energy: float | None = None

    @property
    def id(self) -> int:
        """The run's number."""
        return self.run.id or 0

    @cached_property
    def options(self) -> TrainingOptions:
        """What is to be trained, and how. Raises InvalidConfig."""
        return TrainingOptions.from_dict(self.run.config)

    @property
    def train(self) -> TrainConfig:
        """How it is to be trained."""
        return self.options.train

    @property
    def stood_at(self) -> str:
        """Where a run stands that is let go of as it was saved last."""
        return f"after {self.saved_step} steps" if self.saved_step else "before the first step"

    @cached_property
    def watch(self) -> Watch:
        """What judges it."""
        return Watch(self.train.patience)

    def catch_up(self, points: Iterable[Point]) -> None:
        """Judge what was measured before it was interrupted, so that the judgement goes on as if it had not
        been.
        """
        for point in points:
            if point.validation_loss is not None:
                self.watch.evaluation(point.step, point.validation_loss)
                self.best = min(self.best, point.validation_loss)
            elif point.loss is not None and point.grad_norm is not None:
                self.watch.step(point.step, point.loss, point.grad_norm)

    def step_done(self, event: StepDone) -> list[Alert]:
        """Take a step's measurement; say what it gives cause for."""
        self.points.append(_training_point(self.id, event))
        self.step = event.step
        self.wants_save |= self._is_due()
        every = steps_between_evaluations(self.total_steps, self.train)
        self.wants_sample |= not self.validates and (
            event.step % every == 0 or event.step == self.total_steps
        )
        return self.watch.step(event.step, event.loss, event.grad_norm)

    def evaluated(self, event: EvalDone) -> list[Alert]:
        """Take an evaluation's measurement; say what it gives cause for."""
        self.points.append(
            Point(
                run_id=self.id,
                step=event.step,
                validation_loss=event.loss,
                metrics=_finite_metrics(event.metrics),
            )
        )
        self.wants_sample = True
        if event.loss < self.best:
            self.best = event.loss
            self.wants_save |= (self.train.save_best or self.train.keep_best) and event.step > 0
        return self.watch.evaluation(event.step, event.loss)

    def _is_due(self) -> bool:
        train = self.train
        by_steps = bool(train.save_steps) and self.step - self.saved_step >= train.save_steps
        by_time = bool(train.save_minutes) and time.monotonic() - self.saved_at >= train.save_minutes * 60
        return by_steps or by_time


def _training_point(run_id: int, event: StepDone) -> Point:
    def finite(value: float) -> float | None:  # the database has no NaN
        return value if math.isfinite(value) else None

    return Point(
        run_id=run_id,
        step=event.step,
        epoch=event.epoch,
        loss=finite(event.loss),
        learning_rate=event.learning_rate,
        grad_norm=finite(event.grad_norm),
        tokens_per_second=event.tokens_per_second,
        memory_bytes=event.memory_bytes,
        seconds_left=event.seconds_left,
        tokens=event.total_tokens,
        seconds=event.total_seconds,
        metrics=_finite_metrics(event.metrics),
    )


def _finite_metrics(metrics: Mapping[str, float]) -> dict[str, float] | None:
    """JSON has no NaN either."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)} or None


def _sequences(event: Prepared) -> str:
    return f", which become {event.train_sequences} sequences" if event.train_sequences else ""


def prepared_sentence(event: Prepared, together: int, over_length: str) -> str:
    """What a run is about to do."""
    parts = [
        f"{event.train_rows} rows to train on{_sequences(event)}, {event.validation_rows} kept for "
        f"validation, "
        f"{event.total_steps} steps, "
        f"{event.trainable_parameters:,} trainable parameters, base in {event.dtype}"
    ]
    if event.quantisation != NONE:
        parts.append(f"its linear layers held in {LABELS[event.quantisation]}")
    if event.blocks:
        parts.append(f"packed into {event.blocks} blocks of {event.max_length:,} tokens")
    if event.start_change is not None:
        said = "exactly 0" if event.start_change == 0 else f"not exactly 0 (up to {event.start_change:.2g})"
        parts.append(f"what it adds to the base at the start is {said}, tested on the device")
    if together > 1:
        parts.append(f"{together} adapters train at once")
    if event.truncated_rows:
        done = {"truncate": "cut off", "split": "split into several", "drop": "left out"}[over_length]
        parts.append(
            f"{_rows(event.truncated_rows, 'is', 'are')} longer than {event.max_length:,} tokens and "
            f"{'was' if event.truncated_rows == 1 else 'were'} {done}"
        )
    if event.skipped_rows and over_length != "drop":
        parts.append(
            f"{_rows(event.skipped_rows, 'has', 'have')} no answer within that length and nothing was "
            "trained on there"
        )
    return "; ".join(parts)


def other_numbers_sentence(before: object, event: Prepared) -> str:
    """Where a run goes on in another number format than it had, what follows; else nothing. before: as noted
    when it was prepared last, if it was.
    """
    if before in (None, event.dtype):
        return ""
    return (
        f"The base computes in {event.dtype} now and computed in {before} before, so the run goes on as it "
        f"was up to that rounding, not bit for bit; set LORA_WORKBENCH_DTYPE={before} for the same."
    )


def _rows(count: int, one: str, many: str) -> str:
    return f"1 row {one}" if count == 1 else f"{count:,} rows {many}"
