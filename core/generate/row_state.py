"""What the rows of one batch are between two tokens, whichever way they are computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from core.base_model.load import ResidentBase
from core.generate.state_size import state_bytes
from core.lora.mixed_bank import Bank
from core.sending import sent

NO_ROW = -1
"""In the place of a slot."""


class RowState(ABC):
    """Positions, slots and the ids so far; what the rows have read, each way keeps as it needs it."""

    notice = ""
    """What whoever looks after the engine should know: that something quicker failed."""

    def __init__(self, base: ResidentBase, bank: Bank | None, rows: int, capacity: int) -> None:
        """Room for `rows` rows of up to `capacity` tokens. bank None decodes with the plain base."""
        self.base, self.bank, self.rows, self.capacity = base, bank, rows, capacity
        device = base.device
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)
        self.slots = torch.zeros(rows, dtype=torch.long, device=device)
        self.history = torch.zeros(rows, capacity, dtype=torch.long, device=device)

    @abstractmethod
    def prefill(self, ids: Tensor, start: int) -> Tensor:
        """Read prompt tokens [rows, length] at positions start and on, of all rows or the first ones; the
        last layer's output [rows, length, hidden], or the logits where the model does more after its head
        than the head's product.
        """

    @torch.no_grad()
    def logits_of(self, hidden: Tensor, slots: Tensor) -> Tensor:
        """Logits [rows, vocabulary] of what prefill() gave for the last positions of rows that have these
        slots, [rows, …].
        """
        if not self.base.plain_head:
            return hidden
        head = self.base.model.get_output_embeddings()
        # putting a bank in its places takes the host as long as a small pass takes the device
        is_adapted = self.bank is not None and self.bank.is_on(head)
        with self._using(slots) if is_adapted else nullcontext():
            logits: Tensor = head(hidden[:, None])[:, 0]
        return logits

    @abstractmethod
    def step(self, rows: int | None = None, longest: int | None = None) -> Tensor:
        """Read `tokens` at `positions`, move the positions on, and return the logits of what follows, [rows,
        vocabulary]: of the first `rows`, none of which is longer than `longest` tokens with this one. CUDA's
        graph takes them all.
        """

    def take_rows(self, other: RowState, rows: Sequence[int], first: int = 0) -> None:
        """Continue with these rows of another state, or of this one, in this order, from place `first` on."""
        chosen = sent(list(rows), self.base.device)
        places, room = slice(first, first + len(rows)), min(self.capacity, other.capacity)
        for name in ("tokens", "positions", "slots"):
            getattr(self, name)[places] = getattr(other, name)[chosen]
        self.history[places, :room] = other.history[chosen, :room]
        self._take_read(other, chosen, first)

    def leave(self, first: int) -> None:
        """The places from `first` on hold no row: a step that computes all of them has little to do there."""
        self.slots[first:], self.positions[first:] = NO_ROW, 0

    @abstractmethod
    def _take_read(self, other: Any, rows: Tensor, first: int) -> None:
        """The same for what these rows of a state of the same kind have read."""

    @property
    def bytes(self) -> int:
        """What caches and history take."""
        return state_bytes(self.base, self.rows, self.capacity)

    def _using(self, slots: Tensor) -> AbstractContextManager[None]:
        return nullcontext() if self.bank is None else self.bank.use(slots)
