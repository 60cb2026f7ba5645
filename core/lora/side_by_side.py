"""Adapters that are computed in different ways, trained side by side: a bank for each way, in one batch.

Each bank holds its own adapters alone, in slots that follow each other, and computes their rows of the batch
as it does by itself. So a kind is as quick in company as it is alone, and none pays for another's work.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from core.lora.bank import AdapterBank
from core.lora.stack import SplitStack
from core.lora.whole_stack import in_use


class SideBySideBank(nn.Module):
    """Several banks under one numbering of slots: those of the first bank, then those of the next."""

    def __init__(self, banks: Sequence[AdapterBank]) -> None:
        super().__init__()
        self._banks = list(banks)
        self._modules.update({str(number): bank for number, bank in enumerate(banks)})
        counts = [bank.slots for bank in banks]
        self._starts = [0, *itertools.accumulate(counts)]
        self.slots = self._starts[-1]
        self._own = [one for bank in banks for one in bank.own]
        self._places = {path: place for bank in banks for path, place in bank.places.items()}
        self._stacks = {
            path: SplitStack([bank.stacks.get(path) for bank in banks], counts) for path in self._places
        }

    @contextmanager
    def use(self) -> Iterator[None]:
        """Within the block the model computes with all slots in order."""
        with in_use(self._places, self._stacks, None, self._own):
            yield

    def refresh(self) -> None:
        """As AdapterBank.refresh()."""
        for bank in self._banks:
            bank.refresh()

    @property
    def gives_up_products(self) -> bool:
        """See AdapterBank.gives_up_products."""
        return True

    @property
    def drops(self) -> bool:
        """As AdapterBank.drops."""
        return any(bank.drops for bank in self._banks)

    def key_dropout(self, keys: Sequence[int]) -> None:
        """As AdapterBank.key_dropout()."""
        for first, bank in zip(self._starts, self._banks, strict=False):
            bank.key_dropout(keys[first : first + bank.slots])

    def begin_rows(self, first: int) -> None:
        """As AdapterBank.begin_rows()."""
        for bank in self._banks:
            bank.begin_rows(first)

    def begin_batch(self, row_length: int) -> None:
        """As AdapterBank.begin_batch()."""
        for bank in self._banks:
            bank.begin_batch(row_length)

    def begin_tokens(self, first: int) -> None:
        """As AdapterBank.begin_tokens()."""
        for bank in self._banks:
            bank.begin_tokens(first)

    def place(self, slot: int) -> tuple[AdapterBank, int]:
        """As AdapterBank.place()."""
        number = next(at for at, end in enumerate(self._starts[1:]) if slot < end)
        return self._banks[number], slot - self._starts[number]

    def gradient_norms(self) -> Tensor:
        """As AdapterBank.gradient_norms()."""
        return torch.cat([bank.gradient_norms() for bank in self._banks])

    def forget_gradients(self, slots: Sequence[int] | None = None) -> None:
        """As AdapterBank.forget_gradients()."""
        for first, bank in zip(self._starts, self._banks, strict=False):
            inside = range(first, first + bank.slots)
            bank.forget_gradients(None if slots is None else [one - first for one in slots if one in inside])


TrainedBank = AdapterBank | SideBySideBank
"""What a group trains: one bank where all its runs are computed in one way."""
