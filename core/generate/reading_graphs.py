"""Prompts read by CUDA graphs: a pass over some hundred tokens is little work and many calls, so that without
one the GPU waits for the next call most of the time.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from core.base_model.load import ResidentBase
from core.generate.one_token import DecodingState, Stacks, empty_stacks
from core.generate.row_state import RowState
from core.lora.mixed_bank import Bank

_ROWS = (1, 2, 4, 8, 16)
_TOKENS = (64, 128, 256, 512)
_MOST = 2048  # rows times tokens; a larger pass keeps the GPU busy as it is
_WORTH = 2  # capturing takes as long as some passes, so a shape has to come again first


class ReadingGraphs:
    """States into which rows are read by a graph, of a few shapes. One is lent at a time, and all of them use
    the same memory for what they read.
    """

    def __init__(self, base: ResidentBase) -> None:
        self.notice = ""
        """What whoever looks after the engine should know: that capturing failed."""
        self._base, self._lent = base, False
        self._bank: Bank | None = None
        self._seen = Counter[tuple[int, int]]()
        self._states: dict[tuple[int, int], _CapturedReading] = {}
        self._memory: Stacks = {}

    def borrow(self, bank: Bank | None, rows: int, tokens: int) -> DecodingState | None:
        """A state for so many rows of up to so many tokens, to be given back; None where there is no graph
        for them.
        """
        shape = _fitting(_ROWS, rows), _fitting(_TOKENS, tokens)
        if not self._base.may_capture or self.notice or self._lent:
            return None
        if not 0 < shape[0] * shape[1] <= _MOST:
            return None
        if bank is not self._bank:
            self._bank, self._states = bank, {}
        self._seen[shape] += 1
        if shape not in self._states and self._seen[shape] >= _WORTH:
            self._capture(*shape)
        self._lent = shape in self._states
        return self._states.get(shape)

    def give_back(self, state: RowState) -> None:
        """The next may have it, or any other."""
        if isinstance(state, _CapturedReading):
            self._lent = False

    def _capture(self, rows: int, tokens: int) -> None:
        try:
            self._memory = self._memory or empty_stacks(self._base, 1, _MOST)
            state = _CapturedReading(self._base, self._bank, rows, tokens, stacks=self._part(rows, tokens))
            state.capture()
        except RuntimeError as error:  # too little memory, or a model that no graph can hold
            self._states, self._memory = {}, {}
            self.notice = f"Prompts are read without CUDA graphs: {str(error).strip()[:200]}"
        else:
            self._states[rows, tokens] = state

    def _part(self, rows: int, tokens: int) -> Stacks:
        """The beginning of the memory as keys and values of this shape."""
        parts = {}
        for (heads, width), memory in self._memory.items():
            shape = len(memory), rows, heads, tokens, width
            parts[heads, width] = memory.view(-1)[: torch.Size(shape).numel()].view(shape)
        return parts


class _CapturedReading(DecodingState):
    """Rows whose prompts, padded to its capacity, are read from `history` in one replay."""

    def capture(self) -> None:
        """Capture the pass; what it reads and writes is where it was."""
        ids = self.history
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            super().prefill(ids, 0)
        torch.cuda.current_stream().wait_stream(side)
        self._reading = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._reading, capture_error_mode="thread_local"):
            self._hidden = super().prefill(ids, 0)

    def prefill(self, ids: Tensor, start: int) -> Tensor:
        """See DecodingState.prefill(), of a whole prompt: the ids stand in `history`, and what is behind the
        first rows and tokens is no one's.
        """
        assert start == 0
        assert ids.data_ptr() == self.history.data_ptr()
        self._reading.replay()
        return self._hidden


def _fitting(sizes: tuple[int, ...], wanted: int) -> int:
    """The smallest of these that is as large; 0 if none is."""
    return next((size for size in sizes if size >= wanted), 0)
