"""One decoding step for a batch of rows: static caches, and on CUDA one graph for each batch size.

Every row has its own length and its own adapter. All state of a step lies in tensors that stay where they
are, so a captured step is replayed for token after token, whoever the rows belong to.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from core.base_model.attention import OneToken, Prefill, attend
from core.base_model.compiling import compile_layers, eager_layers
from core.base_model.load import ResidentBase
from core.lora.bank import Bank

_CAPACITY_STEP = (
    512  # on an accelerator capacities are this times a power of four, so that few graphs are needed
)
_CAPACITY_BLOCK = 64  # elsewhere they are whole blocks of so many tokens
_BATCH_SIZES = (1, 4, 8, 16, 32, 64)
_ROW_BLOCK = 4
MOST_ROWS = _BATCH_SIZES[-1]
_WARM_UP = 2


class DecodingState:
    """The rows of one batch between two tokens: caches, positions, slots, and the ids so far."""

    def __init__(
        self,
        base: ResidentBase,
        bank: Bank | None,
        rows: int,
        capacity: int,
        *,
        compiled: bool = False,
    ) -> None:
        """Room for `rows` rows of up to `capacity` tokens. bank None decodes with the plain base."""
        self.base, self.bank, self.rows, self.capacity = base, bank, rows, capacity
        self._compiled = compiled
        self.notice = ""
        """What whoever looks after the engine should know: that compiling failed."""
        device = base.device
        self.tokens = torch.zeros(rows, dtype=torch.long, device=device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=device)
        self.slots = torch.zeros(rows, dtype=torch.long, device=device)
        self.history = torch.zeros(rows, capacity, dtype=torch.long, device=device)
        self._numbers = torch.arange(rows, device=device)
        self._places = torch.arange(capacity, device=device)
        self.caches = [
            (
                torch.zeros(rows, one.kv_heads, capacity, one.key_width, device=device, dtype=base.dtype),
                torch.zeros(rows, one.kv_heads, capacity, one.value_width, device=device, dtype=base.dtype),
            )
            for one in base.attention
        ]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None

    @torch.no_grad()
    def prefill(self, ids: Tensor, start: int) -> Tensor:
        """Read prompt tokens [rows, length] at positions start and on, of all rows or the first ones; the
        last layer's output [rows, length, hidden], or the logits where the model does more after its head
        than the head's product.
        """
        rows = len(ids)
        passes = [Prefill(keys[:rows], values[:rows], start) for keys, values in self.caches]
        positions = torch.arange(start, start + ids.shape[1], device=ids.device).expand_as(ids)
        with self._using(self.slots[:rows]), attend(self.base.attention, passes), eager_layers():
            inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
            if not self.base.plain_head:
                return self.base.model(**inputs).logits
            return self.base.model.base_model(**inputs).last_hidden_state

    @torch.no_grad()
    def logits_of(self, hidden: Tensor, slots: Tensor) -> Tensor:
        """Logits [rows, vocabulary] of what prefill() gave for the last positions of rows that have these
        slots, [rows, …].
        """
        if not self.base.plain_head:
            return hidden
        with self._using(slots):
            return self.base.model.get_output_embeddings()(hidden[:, None])[:, 0]

    @property
    def bytes(self) -> int:
        """What keys, values and history take."""
        return self.rows * self.capacity * bytes_a_token(self.base)

    @torch.no_grad()
    def step(self, rows: int | None = None, longest: int | None = None) -> Tensor:
        """Read `tokens` at `positions`, move the positions on, and return the logits of what follows, [rows,
        vocabulary]: of the first `rows`, none of which is longer than `longest` tokens with this one. CUDA's
        graph takes them all.
        """
        if self.base.device.type != "cuda":
            return self._step(rows, longest)
        if self._graph is None:
            self._capture()
        assert self._graph is not None
        assert self._logits is not None
        self._graph.replay()
        return self._logits

    def _step(self, rows: int | None = None, longest: int | None = None) -> Tensor:
        positions, numbers = self.positions[:rows], self._numbers[:rows]
        seen = (self._places[:longest] <= positions[:, None])[:, None, None]
        passes = [
            OneToken(keys[:rows, :, :longest], values[:rows, :, :longest], numbers, positions, seen)
            for keys, values in self.caches
        ]
        layers = nullcontext() if self._compiled else eager_layers()
        with self._using(self.slots[:rows]), attend(self.base.attention, passes), layers:
            logits = self._forward(self.tokens[:rows], positions)
        self.history[numbers, positions] = self.tokens[:rows]
        positions.add_(1).clamp_(max=self.capacity - 1)  # a row that has ended may run on unseen
        return logits

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        inputs = {"input_ids": tokens[:, None], "position_ids": positions[:, None], "use_cache": False}
        return self.base.model(**inputs).logits[:, -1]

    def _using(self, slots: Tensor) -> AbstractContextManager[None]:
        return nullcontext() if self.bank is None else self.bank.use(slots)

    def _capture(self) -> None:
        """Capture one step; the state is as before.

        Where compiling fails, the layers are captured as they are written.
        """
        kept = [one.clone() for one in (self.positions, self.history)]
        try:
            if self._compiled:
                compile_layers(self.base)
            self._warm_up(kept[0])
        except Exception as error:
            if not self._compiled or isinstance(error, torch.OutOfMemoryError):
                raise
            self._compiled, self.notice = (
                False,
                f"Decoding runs without compiled layers: {str(error).strip()[:200]}",
            )
            self._warm_up(kept[0])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._logits = self._step()
        self._graph = graph
        self.positions.copy_(kept[0])
        self.history.copy_(kept[1])

    def _warm_up(self, positions: Tensor) -> None:
        """Run a few steps on a stream of its own, as capturing asks."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._step()
                self.positions.copy_(positions)
        torch.cuda.current_stream().wait_stream(side)

    def take_rows(self, other: DecodingState, rows: Sequence[int], first: int = 0) -> None:
        """Continue with these rows of another state, or of this one, in this order, from place `first` on."""
        chosen = torch.tensor(list(rows), device=self.base.device)
        places, room = slice(first, first + len(rows)), min(self.capacity, other.capacity)
        for name in ("tokens", "positions", "slots"):
            getattr(self, name)[places] = getattr(other, name)[chosen]
        self.history[places, :room] = other.history[chosen, :room]
        for mine, theirs in zip(self.caches, other.caches, strict=True):
            for one, two in zip(mine, theirs, strict=True):
                one[places, :, :room] = two[chosen, :, :room]
                one[places, :, room:] = 0  # no weight makes nothing of a NaN that another row has left


def bytes_a_token(base: ResidentBase) -> int:
    """What one token of one row takes in a state."""
    numbers = sum(one.kv_heads * (one.key_width + one.value_width) for one in base.attention)
    return numbers * base.dtype.itemsize + torch.long.itemsize


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


class StatePool:
    """States that can be used again, so that a chat finds its graph captured."""

    def __init__(
        self,
        base: ResidentBase,
        *,
        compiled: bool = False,
        most: int = 4,
        most_bytes: int | None = None,
    ) -> None:
        """Keeps at most so many, and so many bytes of them."""
        self._base, self._compiled, self._most, self._most_bytes = base, compiled, most, most_bytes
        self._free: list[DecodingState] = []
        self.notice = ""
        """What whoever looks after the engine should know."""

    def borrow(self, bank: Bank | None, rows: int, tokens: int) -> DecodingState:
        """A state for these rows; give it back when done."""
        device = self._base.device
        rows, capacity = fitting_rows(rows, device), fitting_capacity(tokens, device)
        self._free = [one for one in self._free if one.bank is bank or bank is None]
        for one in self._free:
            if (one.rows, one.capacity) == (rows, capacity) and one.bank is bank:
                self._free.remove(one)
                return one
        return DecodingState(self._base, bank, rows, capacity, compiled=self._compiled)

    def give_back(self, state: DecodingState) -> None:
        """Keep a state for the next who needs one like it; only graphs are worth keeping."""
        self.notice = state.notice or self.notice
        self._compiled = (
            self._compiled and not state.notice
        )  # what failed once is not tried for every batch size
        if self._base.device.type == "cuda":
            self._free.append(state)
            del self._free[: -self._most]
            while self._most_bytes is not None and sum(one.bytes for one in self._free) > self._most_bytes:
                del self._free[0]
