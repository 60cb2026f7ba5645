"""The dtype in which the engine and its workers compute, where somebody has named one."""

from __future__ import annotations

import os

import torch

from app.shared.settings import DTYPE_VARIABLE
from core.errors import InvalidConfig


def dtype_from_environment() -> torch.dtype | None:
    """A dtype asked for by name; none for the best one."""
    name, known = os.environ.get(DTYPE_VARIABLE), {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name and name not in known:
        raise InvalidConfig(f"{DTYPE_VARIABLE} is {name!r}; use {' or '.join(known)}, or leave it unset.")
    return known[name] if name else None
