"""Which rows share a block. Works on lengths alone and needs no torch."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

_OPEN_BLOCKS = 512  # blocks that still take rows; more would fill better and take longer

OVER_LENGTH = ("truncate", "split", "drop")
"""What can become of a row that is longer than a block."""
Block = tuple[int, ...]
"""The numbers of the rows that lie in one block, in order."""


def pack(lengths: Sequence[int], block_length: int, seed: int) -> list[Block]:
    """Rows in blocks of at most block_length tokens: best fit, in a random order so that no block is of one
    kind.

    Raises ValueError if a row is longer than a block.
    """
    if len(lengths) and max(lengths) > block_length:
        raise ValueError(f"a row of {max(lengths)} tokens does not fit into blocks of {block_length}")
    blocks: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, block), ascending
    for row in np.random.default_rng(seed).permutation(len(lengths)).tolist():
        length = int(lengths[row])
        at = bisect_left(room, (length, -1))
        if at < len(room):
            free, block = room.pop(at)
        else:
            free, block = block_length, len(blocks)
            blocks.append([])
        blocks[block].append(row)
        if free > length:
            insort(room, (free - length, block))
        if len(room) > _OPEN_BLOCKS:
            room.pop(0)
    return [tuple(block) for block in blocks]


def one_row_each(rows: int) -> list[Block]:
    """Blocks of a single row: no packing."""
    return [(row,) for row in range(rows)]
