"""What should worry whoever trains: loss that is no number, spikes, dead gradients,
overfitting, no progress.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

_WINDOW = 50  # steps that a spike is judged by
_LEAST = 20  # steps before any judgement
_DEVIATIONS = 8.0  # median absolute deviations, scaled to a normal distribution's standard deviation
_SCALE = 1.4826
_FACTOR = 1.5  # and so many times the median: a flat curve has tiny deviations
_ZERO_STEPS = 3


@dataclass(frozen=True)
class Alert:
    """One of core.train.config.ALERTS, and a sentence with the figures."""

    kind: str
    text: str


class Watch:
    """Judges a run by its measurements alone, so what it says after a resume is what it would have said."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._quiet_until = 0  # no second spike before this step
        self._zeros = 0
        self._best: tuple[float, int] | None = None  # loss, step
        self._last: float | None = None
        self._rising = self._stale = 0

    def step(self, step: int, loss: float, grad_norm: float) -> list[Alert]:
        """What an optimiser step gives cause for."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return [
                Alert(
                    "nan",
                    (
                        f"Step {step}: the loss is {loss:.4g}, the gradient norm {grad_norm:.4g}; the step "
                        "was skipped"
                    ),
                )
            ]
        found = [*self._spike(step, loss), *self._zero(step, grad_norm)]
        self._losses.append(loss)
        return found

    def _spike(self, step: int, loss: float) -> list[Alert]:
        if len(self._losses) < _LEAST or step < self._quiet_until:
            return []
        usual = statistics.median(self._losses)
        spread = _SCALE * statistics.median(abs(one - usual) for one in self._losses)
        if loss <= max(usual + _DEVIATIONS * spread, usual * _FACTOR):
            return []
        self._quiet_until = step + _WINDOW
        return [
            Alert(
                "spike",
                f"Step {step}: the loss jumped to {loss:.4g}, usual were {usual:.4g}; consider a lower rate",
            )
        ]

    def _zero(self, step: int, grad_norm: float) -> list[Alert]:
        self._zeros = self._zeros + 1 if grad_norm == 0.0 else 0
        if self._zeros != _ZERO_STEPS:
            return []
        return [
            Alert(
                "zero-gradient",
                f"Step {step}: the gradient has been zero for {_ZERO_STEPS} steps; nothing is learnt",
            )
        ]

    def evaluation(self, step: int, loss: float) -> list[Alert]:
        """What an evaluation gives cause for. A loss that is no number is neither better nor worse than
        others, and those that follow are not held against it.
        """
        if not math.isfinite(loss):
            return [Alert("nan", f"Step {step}: the validation loss is {loss:.4g}")]
        self._rising = self._rising + 1 if self._last is not None and loss > self._last else 0
        self._last = loss
        if self._best is None or loss < self._best[0]:
            self._best, self._stale = (loss, step), 0
        else:
            self._stale += 1
        found, best = [], f"the best was {self._best[0]:.4f} at step {self._best[1]}"
        if self._rising == self._patience:
            found.append(
                Alert(
                    "overfitting",
                    f"Step {step}: the validation loss has risen {self._rising} times to {loss:.4f}; {best}",
                )
            )
        if self._stale == self._patience:
            found.append(
                Alert(
                    "no-improvement",
                    f"Step {step}: no better validation loss in {self._stale} evaluations; {best}",
                )
            )
        return found
