"""How many rows, blocks and steps a run has. Needs no torch."""

from __future__ import annotations

import math

from core.config import TrainConfig

_STEPS_WORTH_PACKING = 100  # fewer steps than this teach too little, however quick they are


def planned_steps(blocks: int, config: TrainConfig) -> int:
    """Optimiser steps of a whole run over `blocks` training blocks (rows, where nothing is packed)."""
    return config.max_steps or max(1, math.ceil(config.epochs * steps_per_epoch(blocks, config)))


def steps_per_epoch(blocks: int, config: TrainConfig) -> int:
    """Optimiser steps of one pass over `blocks` blocks."""
    return math.ceil(blocks / (config.micro_batch_size * config.gradient_accumulation_steps))


def packs(rows: int, tokens: float, longest: int, block_length: int, config: TrainConfig) -> bool:
    """Whether `rows` rows of `tokens` tokens in all are packed into blocks.

    With auto, they are if a block would take two of the longest rows or more on average, and the run keeps enough
    steps: a packed step sees many more rows, so a small data set would be over after a handful.
    """
    if config.packing != "auto":
        return config.packing == "on"
    worthwhile = tokens / max(1, rows) <= block_length / 2 and longest <= block_length
    return worthwhile and planned_steps(math.ceil(tokens / block_length), config) >= _STEPS_WORTH_PACKING
