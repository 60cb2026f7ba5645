"""How long a run will take, from the times of a short trial. Needs no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from core.train.config import TrainConfig
from core.train.step_count import evaluations


@dataclass(frozen=True)
class Timed:
    """What one micro-batch took when everything was warm."""

    tokens: int
    """Its size, the padding counted."""
    seconds: float


@dataclass(frozen=True)
class TrialTimes:
    """What a trial has shown."""

    starting: float
    """Seconds before the first step."""
    warming: float
    """Seconds that the first micro-batches of a shape take more than later ones."""
    warm_after: int
    """Micro-batches of a shape after which it is warm."""
    longest: Timed
    usual: Timed
    evaluated: Timed | None
    """A micro-batch of validation rows; None if there are none."""
    saving: float
    """Seconds for a checkpoint of every run of the group."""

    def of_micro_batch(self, tokens: int) -> float:
        """Seconds for a warm micro-batch of this size: on the line through the two that were timed."""
        more = self.longest.tokens - self.usual.tokens
        slope = (self.longest.seconds - self.usual.seconds) / more if more else 0.0
        if slope <= 0:  # there is but one size, or size does not matter here
            return self.usual.seconds
        return max(
            self.usual.seconds + slope * (tokens - self.usual.tokens),
            self.usual.seconds * tokens / self.longest.tokens,
        )


@dataclass(frozen=True)
class PlannedTime:
    """Seconds of a whole run, by what they are spent on; without loading the base and reading the rows."""

    starting: float = 0.0
    training: float = 0.0
    evaluating: float = 0.0
    saving: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.starting + self.training + self.evaluating + self.saving


def training_seconds(times: TrialTimes, sizes: Iterable[int], repeated: float = 1.0) -> float:
    """For micro-batches of these sizes, each so many times: the warming counted once for each size."""
    return sum(
        count * repeated * times.of_micro_batch(size)
        + times.warming * min(1.0, count * repeated / max(1, times.warm_after))
        for size, count in Counter(sizes).items()
    )


def checkpoints(steps: int, seconds: float, validates: bool, config: TrainConfig) -> float:
    """How often a run of so many steps and seconds is saved, its end counted: as if each evaluation were the
    best so far.
    """
    best = evaluations(steps, config) - 1 if validates and (config.save_best or config.keep_best) else 0
    by_steps = steps // config.save_steps if config.save_steps else 0
    by_time = seconds // (60 * config.save_minutes) if config.save_minutes else 0
    return 1 + max(best, by_steps, by_time)
