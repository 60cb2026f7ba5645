"""How many rows and steps a run has. Needs no torch."""

from __future__ import annotations

import math

from core.config import TrainConfig

_ROWS_FOR_VALIDATION = 10


def validation_count(rows: int, share: float) -> int:
    """Rows kept back; at least one if a share is asked for and ten rows are there."""
    count = round(rows * share)
    return 1 if share > 0 and count == 0 and rows >= _ROWS_FOR_VALIDATION else count


def planned_steps(rows: int, config: TrainConfig) -> int:
    """Optimiser steps of a whole run over `rows` training rows."""
    return config.max_steps or max(1, math.ceil(config.epochs * steps_per_epoch(rows, config)))


def steps_per_epoch(rows: int, config: TrainConfig) -> int:
    """Optimiser steps of one pass over `rows` rows."""
    return math.ceil(rows / (config.micro_batch_size * config.gradient_accumulation_steps))
