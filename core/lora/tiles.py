"""Rows of one batch that have the same adapter, found once for all layers of a pass.

The layers' operators are given which slot each row has; a table that says which rows share one is a quicker
way to the same, so it is kept beside these slots while they are in use and is no argument of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_FEWEST = 32
"""Rows from which on it is quicker: with 16 adapters, 32 and 64 rows of a 1B on an H200 were, 16 were not."""
_in_use: ContextVar[tuple[Tensor, Tensor] | None] = ContextVar("rows in tiles", default=None)


@contextmanager
def in_tiles(slots: Tensor | None, adapters: int) -> Iterator[None]:
    """Within the block, whose passes read one token of each row or more, tiles_of() knows about these slots
    of so many adapters. A captured pass finds the tiles anew each time.
    """
    if slots is None or not slots.is_cuda or len(slots) < _FEWEST:
        yield
        return
    from core.lora.kernels import gathered  # needs Triton

    before = _in_use.set((slots, gathered(slots, adapters)))
    try:
        yield
    finally:
        _in_use.reset(before)


def tiles_of(slots: Tensor) -> Tensor | None:
    """What core.lora.kernels.gathered() makes of these slots, if they are in use; None if it is not worth
    it.
    """
    found = _in_use.get()
    if found is None or (found[0].data_ptr(), len(found[0])) != (slots.data_ptr(), len(slots)):
        return None
    return found[1]
