"""Batches for the general way: each row by itself and filled up on the right, where nothing that computes
causally looks.

Where rows of different lengths would change each other's numbers, those of one length are a pass of their
own; the loss is taken over what all passes have given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.base_model.way import Way
from core.data.rendering import IGNORE
from core.train.batches import Batch, MicroBatch, Shape, chosen_positions, collate, numbered

_SHORTEST = 64  # tokens, of the lengths on an accelerator

Tokens = tuple[NDArray[np.int32], NDArray[np.int32]]
"""Ids and labels of a row."""


@dataclass(frozen=True)
class PaddedBatch(Batch):
    """Rows of K runs, run after run, as many of each in every pass; `ids` is empty, `index` counts over the
    tokens of all passes.
    """

    passes: tuple[Tensor, ...] = ()
    """Ids [K·rows, length] of each."""

    def inputs(self) -> list[dict[str, Tensor]]:
        """As Batch.inputs()."""
        return [{"input_ids": ids} for ids in self.passes]

    def to(self, device: torch.device) -> Batch:
        """As Batch.to()."""
        moved: Any = super().to(device)
        return replace(moved, passes=tuple(ids.to(device, non_blocking=True) for ids in self.passes))

    def pinned(self) -> Batch:
        """As Batch.pinned()."""
        moved: Any = super().pinned()
        return replace(moved, passes=tuple(ids.pin_memory() for ids in self.passes))

    def copy_(self, other: Batch) -> None:
        """As Batch.copy_()."""
        super().copy_(other)
        for ids, others in zip(self.passes, cast(PaddedBatch, other).passes, strict=True):
            ids.copy_(others, non_blocking=True)

    def key(self) -> tuple[int, ...]:
        """As Batch.key()."""
        return (*(size for ids in self.passes for size in ids.shape), len(self.index), self.runs)


def batch_of(parts: Sequence[MicroBatch | None], shape: Shape, way: Way) -> Batch:
    """The batch of K runs' micro-batches, as the base's way computes it."""
    return collate(parts, shape) if way.quick else collate_padded(parts, shape, way)


def collate_padded(parts: Sequence[MicroBatch | None], shape: Shape, way: Way) -> PaddedBatch:
    """Lay the rows of K runs' micro-batches into passes; a run that has fewer of a pass than another gets
    empty ones, which count nothing.
    """
    rows = [_rows(part) if part else [] for part in parts]
    longest = max(len(ids) for own in rows for ids, _ in own)
    if shape.fixed:
        longest = fixed_length(longest, max(part.rows.max_length for part in parts if part))
    lengths = [[longest if way.together else len(ids) for ids, _ in own] for own in rows]
    passes, firsts = _laid_out(rows, lengths)
    chosen = [
        [_counted(row, first) for row, first in zip(own, starts, strict=True)]
        for own, starts in zip(rows, firsts, strict=True)
    ]
    index, targets, weights = chosen_positions(chosen, parts, shape)
    empty = torch.empty(0, dtype=torch.long)
    return PaddedBatch(
        ids=empty,
        positions=empty,
        index=torch.from_numpy(index),
        targets=torch.from_numpy(targets),
        weights=torch.from_numpy(weights),
        offsets=None,
        bounds=None,
        runs=len(parts),
        sequence=torch.from_numpy(numbered(chosen, len(index) // len(parts))) if shape.sequences else None,
        sequences=shape.sequences,
        passes=tuple(map(torch.from_numpy, passes)),
    )


def fixed_length(longest: int, most: int) -> int:
    """One of few lengths that hold `longest` of at most `most` tokens, so that passes of one shape come again
    and may be captured; no more than an eighth of it is in vain, but for short ones.
    """
    step = max(_SHORTEST, 1 << (longest.bit_length() - 4)) if longest >= _SHORTEST else _SHORTEST
    return min(-(-longest // step) * step, most)


def _rows(part: MicroBatch) -> list[Tokens]:
    return [part.rows[number] for block in part.blocks for number in block]


def _laid_out(
    rows: Sequence[Sequence[Tokens]], lengths: Sequence[Sequence[int]]
) -> tuple[list[NDArray[np.int64]], list[list[int]]]:
    """The ids of each pass, and of each run's rows where they begin, counted over all passes."""
    passes, firsts, before = [], [[0] * len(own) for own in rows], 0
    for length in sorted({one for own in lengths for one in own}):
        places = [[at for at, one in enumerate(own) if one == length] for own in lengths]
        each = max(map(len, places))
        ids = np.zeros((len(rows) * each, length), np.int64)
        for run, found in enumerate(places):
            for place, at in enumerate(found, run * each):
                tokens, _ = rows[run][at]
                ids[place, : len(tokens)] = tokens
                firsts[run][at] = before + place * length
        passes.append(ids)
        before += ids.size
    return passes, firsts


def _counted(row: Tokens, first: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Where the trained tokens of a row that begins at `first` are predicted, and their ids."""
    found = np.flatnonzero(row[1][1:] != IGNORE)
    return first + found, row[1][1:][found]
