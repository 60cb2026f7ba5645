"""Prompts on the general way: each is read whole and by itself, one a pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.base_model.load import ResidentBase
from core.generate.one_row import Row
from core.generate.own_state import OwnState
from core.lora.mixed_bank import Bank
from core.sending import sent


class OwnReading:
    """Rows whose prompts, and what they have written already, are being read. It is used as a Reading is;
    those with the same weights and ids are read as one.
    """

    def __init__(self, base: ResidentBase, bank: Bank | None, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        alike: dict[tuple[int, tuple[int, ...]], int] = {}
        self.places = [alike.setdefault((row.slot, (*row.prompt, *row.ids)), len(alike)) for row in rows]
        """Of each row, its place in the state."""
        self._different = list(alike)
        self.state = OwnState(base, bank, len(alike), max(row.length for row in rows))
        self._last: list[Tensor] = []

    def read_piece(self) -> bool:
        """Read the next prompt. Whether it was the last."""
        slot, ids = self._different[len(self._last)]
        self._last.append(self.state.read(len(self._last), ids, slot))
        return len(self._last) == len(self._different)

    def logits(self) -> Tensor:
        """Of what follows each row, [rows, vocabulary]."""
        hidden = torch.stack([self._last[place] for place in self.places])
        slots = sent([row.slot for row in self.rows], self.state.slots.device)
        return self.state.logits_of(hidden, slots)
