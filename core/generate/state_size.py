"""How large the state of rows under way is: how many rows and tokens it has room for, and what that takes."""

from __future__ import annotations

import torch

from core.base_model.load import ResidentBase

_CAPACITY_STEP = (
    512  # on an accelerator capacities are this times a power of four, so that few graphs are needed
)
_CAPACITY_BLOCK = 64  # elsewhere they are whole blocks of so many tokens
_BATCH_SIZES = (1, 4, 8, 16, 32, 64)
_ROW_BLOCK = 4
MOST_ROWS = _BATCH_SIZES[-1]


def bytes_a_token(base: ResidentBase) -> int:
    """What one token of one row takes in a state."""
    return base.cache_bytes[0] + torch.long.itemsize


def state_bytes(base: ResidentBase, rows: int, capacity: int) -> int:
    """What keys, values, other states and history of so many rows take."""
    return rows * (capacity * bytes_a_token(base) + base.cache_bytes[1])


def fitting_rows(rows: int, device: torch.device) -> int:
    """How many rows a state for `rows` rows has: few sizes where each costs a graph."""
    if device.type != "cuda":
        return rows if rows <= 2 else -(-rows // _ROW_BLOCK) * _ROW_BLOCK
    return next((size for size in _BATCH_SIZES if size >= rows), rows)


def fitting_capacity(tokens: int, device: torch.device) -> int:
    """The capacity for rows of up to `tokens` tokens."""
    if device.type != "cuda":
        return -(-tokens // _CAPACITY_BLOCK) * _CAPACITY_BLOCK
    capacity = _CAPACITY_STEP
    while capacity < tokens:
        capacity *= 4
    return capacity
