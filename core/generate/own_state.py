"""The rows of one batch on the general way: transformers' own passes and caches.

Every prompt is read at once and by itself; then rows share a pass a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from core.base_model.load import ResidentBase
from core.base_model.own_rows import OwnRows
from core.generate.row_state import RowState
from core.lora.mixed_bank import Bank


class OwnState(RowState):
    """Rows with transformers' caches."""

    def __init__(self, base: ResidentBase, bank: Bank | None, rows: int, capacity: int) -> None:
        """Room for `rows` rows of up to `capacity` tokens. bank None decodes with the plain base."""
        super().__init__(base, bank, rows, capacity)
        self._own = OwnRows(base.model, base.way, rows, self._using_at)

    @torch.no_grad()
    def read(self, place: int, ids: Sequence[int], slot: int) -> Tensor:
        """Begin a row at a place with these ids; what prefill() gives for the last of them, [hidden]."""
        row = torch.tensor(list(ids), device=self.slots.device)
        self.slots[place], self.positions[place] = slot, len(ids)
        self.history[place, : len(ids)] = row
        return self._own.read_at(place, row, self.base.inner)[-1]

    @torch.no_grad()
    def prefill(self, ids: Tensor, start: int) -> Tensor:
        """See RowState; rows of one length, which are read whole."""
        assert start == 0, "prompts are read whole on the general way"
        return self._own.read(self.base.inner, ids)

    @torch.no_grad()
    def step(self, rows: int | None = None, longest: int | None = None) -> Tensor:
        """See RowState."""
        count = self.rows if rows is None else rows
        numbers, positions = torch.arange(count, device=self.slots.device), self.positions[:count]
        self.history[numbers, positions] = self.tokens[:count]
        ends = (positions + 1).tolist()
        logits = self._own.step(self.tokens[:count], lambda place: self.history[place, : ends[place]])
        positions.add_(1).clamp_(max=self.capacity - 1)  # a row that has ended may run on unseen
        return logits

    def _take_read(self, other: OwnState, rows: Tensor, first: int) -> None:
        self._own.take(other._own, rows.tolist(), first)

    def _using_at(self, places: Sequence[int]) -> AbstractContextManager[None]:
        return self._using(self.slots[list(places)])
