"""How many rows, blocks and steps a run has. Needs no torch."""

from __future__ import annotations

import math
from typing import Any

from core.base_model.quantisation import NF4, NONE, bitsandbytes_version
from core.train.config import TrainConfig
from core.train.objectives import OBJECTIVES
from core.train.sharding import FSDP, CardsHold

_SHORTEST_OFFERED = 128
_STEPS_WORTH_PACKING = 100  # fewer steps than this teach too little, however quick they are


def planned_steps(blocks: int, config: TrainConfig) -> int:
    """Optimiser steps of a whole run over `blocks` training blocks (rows, where nothing is packed)."""
    return config.max_steps or max(1, math.ceil(config.epochs * steps_per_epoch(blocks, config)))


def steps_per_epoch(blocks: int, config: TrainConfig) -> int:
    """Optimiser steps of one pass over `blocks` blocks."""
    return math.ceil(blocks / (config.micro_batch_size * config.gradient_accumulation_steps))


def steps_between_evaluations(steps: int, config: TrainConfig) -> int:
    """Optimiser steps between two evaluations of a run of so many steps."""
    return config.eval_steps or max(1, steps // 10)


def evaluations(steps: int, config: TrainConfig) -> int:
    """Passes over the validation rows in a run of so many steps: before the first, on the way, at the end."""
    every = steps_between_evaluations(steps, config)
    return 1 + steps // every + (steps % every > 0)


def packs(rows: int, tokens: float, longest: int, block_length: int, config: TrainConfig) -> bool:
    """Whether `rows` rows of `tokens` tokens in all are packed into blocks.

    With auto, they are if a block would take two of the longest rows or more on average, and the run keeps
    enough steps: a packed step sees many more rows, so a small data set would be over after a handful.
    """
    if OBJECTIVES.get(config.objective).classifies:
        return False
    if config.packing != "auto":
        return config.packing == "on"
    worthwhile = tokens / max(1, rows) <= block_length / 2 and longest <= block_length
    return worthwhile and planned_steps(math.ceil(tokens / block_length), config) >= _STEPS_WORTH_PACKING


def smaller_plans(
    config: TrainConfig, hold: CardsHold | None = None, cards: int = 1
) -> list[tuple[str, dict[str, Any]]]:
    """Changes that lower the memory of a card and keep the effective batch, each in words and as options; the
    cheapest first. hold: how several cards hold the base. cards: over how many it could be laid out, where
    one trains.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    size, accumulation = config.micro_batch_size, config.gradient_accumulation_steps
    if config.rows_a_process > 1:
        half, more = size // 2, -(-size * accumulation // (size // 2))
        change = {"micro_batch_size": half, "gradient_accumulation_steps": more}
        found.append((f"Micro-batch {half}, accumulation {more}", change))
    if config.gradient_checkpointing in ("auto", "off"):
        found.append(("Gradient checkpointing", {"gradient_checkpointing": "on"}))
    if hold is not None and hold.may_part:
        found.append(("A part of the base on each card (FSDP)", {"sharding": FSDP}))
    if cards > 1:
        found.append((f"A part of the base on each of {cards} cards", {"devices": cards, "sharding": FSDP}))
    if config.quantisation == NONE and bitsandbytes_version():
        found.append(("Base in 4 bits (NF4)", {"quantisation": NF4}))
    if config.max_length > _SHORTEST_OFFERED:
        found.append((f"Max length {config.max_length // 2:,}", {"max_length": config.max_length // 2}))
    return found
