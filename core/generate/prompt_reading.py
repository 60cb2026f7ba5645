"""Prompts that are read together. What several rows with the same weights share is read once and copied."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, takewhile

import torch
from torch import Tensor

from core.base_model.load import ResidentBase
from core.generate.one_row import Row
from core.generate.one_token import DecodingState
from core.generate.reading_graphs import ReadingGraphs
from core.lora.mixed_bank import Bank
from core.sending import sent

PREFILL = 512  # prompt tokens of each row that are read at a time
_WORTH = 64  # tokens at the beginning that rows share, from which on it pays to read them apart
_MOST_BORDERS = 4  # each costs a pass


class Reading:
    """Rows whose prompts, and what they have written already, are being read together.

    They are read in parts: up to each place where rows with the same weights go apart, those that are alike
    so far are one row. Who are alike to the end stay one.
    """

    def __init__(
        self, base: ResidentBase, bank: Bank | None, rows: Sequence[Row], graphs: ReadingGraphs
    ) -> None:
        self.rows = list(rows)
        self._ids = [[*row.prompt, *row.ids] for row in rows]
        self._ends = _part_ends([(row.slot, ids) for row, ids in zip(rows, self._ids, strict=True)])
        self._last: list[Tensor | None] = [None] * len(rows)
        self._at = 0
        alike = len(set(self._so_far(self._ends[-1])))
        captured = graphs.borrow(bank, alike, self._ends[0]) if len(self._ends) == 1 else None
        self.state = captured or DecodingState(base, bank, alike, self._ends[-1])
        self.places = [0] * len(rows)
        """Of each row, its place in the state."""
        self._begin_part(self._ends[0])

    def _so_far(self, end: int) -> list[tuple[int, tuple[int, ...]]]:
        """Of each row what tells whether it is another's equal up to there."""
        return [(row.slot, tuple(ids[:end])) for row, ids in zip(self.rows, self._ids, strict=True)]

    def _begin_part(self, end: int) -> None:
        """Have a place for each that differs up to `end`, going on from where it was read so far."""
        so_far, found = self._so_far(end), dict[tuple[int, tuple[int, ...]], int]()
        came_from, self.places = self.places, [found.setdefault(one, len(found)) for one in so_far]
        firsts = [self.places.index(place) for place in range(len(found))]
        state = self.state
        if self._at:
            state.take_rows(state, [came_from[at] for at in firsts])
        rows = [so_far[at] for at in firsts]
        longest, device = max(len(ids) for _, ids in rows), state.slots.device
        padded = [[slot, len(ids), *ids, *[0] * (longest - len(ids))] for slot, ids in rows]
        numbers, count = sent(padded, device), len(rows)
        state.slots[:count], state.positions[:count] = numbers[:, 0], numbers[:, 1]
        state.history[:count, :longest] = numbers[:, 2:]

    def read_piece(self) -> bool:
        """Read the next piece, padded on the right. Whether it was the last."""
        if self._at == self._ends[0]:
            self._ends = self._ends[1:]
            self._begin_part(self._ends[0])
        start, end = self._at, min(self._at + PREFILL, self._ends[0])
        different = max(self.places) + 1
        hidden = self.state.prefill(self.state.history[:different, start:end], start)
        for position, row in enumerate(self.rows):
            if start < row.length <= end:
                self._last[position] = hidden[self.places[position], row.length - 1 - start]
        self._at = end
        return end == self._ends[-1]

    def logits(self) -> Tensor:
        """Of what follows each row, [rows, vocabulary]."""
        hidden = torch.stack([one for one in self._last if one is not None])
        slots = sent([row.slot for row in self.rows], self.state.slots.device)
        return self.state.logits_of(hidden, slots)


def _part_ends(rows: Sequence[tuple[int, list[int]]]) -> list[int]:
    """Where parts end: at most a few places where rows of one slot go apart after a long way together, and
    the longest row's end.
    """
    ordered = sorted(rows)
    apart = [
        _shared(one, other)
        for (slot, one), (next_slot, other) in pairwise(ordered)
        if slot == next_slot and one != other
    ]
    longest = max(len(ids) for _, ids in rows)
    places = sorted({place for place in apart if place >= _WORTH}, key=lambda at: -at * apart.count(at))
    return [*sorted(places[:_MOST_BORDERS]), longest]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens at the beginning are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
