"""One decoding step for a batch of rows: static caches, and on CUDA one graph for each batch size.

Every row has its own length and its own adapter. All state of a step lies in tensors that stay where they
are, so a captured step is replayed for token after token, whoever the rows belong to.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext

import torch
from torch import Tensor

from core.base_model.attention import OneToken, Prefill, attend
from core.base_model.compiling import compile_layers, eager_layers
from core.base_model.load import ResidentBase
from core.generate.row_state import RowState
from core.lora.joint import together
from core.lora.mixed_bank import Bank

_WARM_UP = 2
_MOVED_AT_ONCE = 64 << 20  # bytes of keys and values, a bound on what moving takes beside them

Stacks = dict[tuple[int, int], Tensor]
"""Keys and values of all layers, those of one shape in one tensor: by (heads, width)
[n, rows, heads, capacity, width]."""


class DecodingState(RowState):
    """The rows of one batch between two tokens: caches, positions, slots, and the ids so far."""

    def __init__(
        self,
        base: ResidentBase,
        bank: Bank | None,
        rows: int,
        capacity: int,
        *,
        compiled: bool = False,
        stacks: Stacks | None = None,
    ) -> None:
        """Room for `rows` rows of up to `capacity` tokens. bank None decodes with the plain base. stacks: the
        memory for keys and values, if not its own.
        """
        super().__init__(base, bank, rows, capacity)
        self._compiled = compiled
        device = base.device
        self._numbers = torch.arange(rows, device=device)
        self._places = torch.arange(capacity, device=device)
        self._stacks = stacks or empty_stacks(base, rows, capacity)
        self.caches = _by_layer(base, self._stacks)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits: Tensor | None = None

    @torch.no_grad()
    def prefill(self, ids: Tensor, start: int) -> Tensor:
        """See RowState."""
        rows = len(ids)
        passes = [Prefill(keys[:rows], values[:rows], start) for keys, values in self.caches]
        positions = torch.arange(start, start + ids.shape[1], device=ids.device).expand_as(ids)
        with (
            self._using(self.slots[:rows]),
            together(self.base.joints if self.bank else ()),
            attend(self.base.attention, passes),
            eager_layers(),
        ):
            inputs = {"input_ids": ids, "position_ids": positions, "use_cache": False}
            if not self.base.plain_head:
                return self.base.model(**inputs).logits
            return self.base.model.base_model(**inputs).last_hidden_state

    @torch.no_grad()
    def step(self, rows: int | None = None, longest: int | None = None) -> Tensor:
        """See RowState."""
        if not self.base.may_capture:
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
        with (
            self._using(self.slots[:rows]),
            together(self.base.joints),
            attend(self.base.attention, passes),
            layers,
        ):
            logits = self._forward(self.tokens[:rows], positions)
        self.history[numbers, positions] = self.tokens[:rows]
        positions.add_(1).clamp_(max=self.capacity - 1)  # a row that has ended may run on unseen
        return logits

    def _forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        inputs = {"input_ids": tokens[:, None], "position_ids": positions[:, None], "use_cache": False}
        return self.base.model(**inputs).logits[:, -1]

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

    def _take_read(self, other: DecodingState, rows: Tensor, first: int) -> None:
        places, room = slice(first, first + len(rows)), min(self.capacity, other.capacity)
        for shape, mine in self._stacks.items():
            theirs = other._stacks[shape]
            at_once = max(1, _MOVED_AT_ONCE * len(theirs) // theirs.nbytes)
            for one, two in zip(mine.split(at_once), theirs.split(at_once), strict=True):
                one[:, places, :, :room] = two[:, rows, :, :room]
            mine[:, places, :, room:] = 0  # no weight makes nothing of a NaN that another row has left


def empty_stacks(base: ResidentBase, rows: int, capacity: int) -> Stacks:
    """Memory for the keys and values of so many rows."""
    shapes = _cache_shapes(base)
    return {
        (heads, width): torch.zeros(count, rows, heads, capacity, width, device=base.device, dtype=base.dtype)
        for (heads, width), count in Counter(shapes).items()
    }


def _cache_shapes(base: ResidentBase) -> list[tuple[int, int]]:
    """(heads, width) of the first layer's keys, its values, the next one's keys, …"""
    return [(one.kv_heads, width) for one in base.attention for width in (one.key_width, one.value_width)]


def _by_layer(base: ResidentBase, stacks: Stacks) -> list[tuple[Tensor, Tensor]]:
    """The views (keys, values) of each layer, [rows, heads, capacity, width]."""
    ahead = {shape: iter(stack) for shape, stack in stacks.items()}
    views = [next(ahead[shape]) for shape in _cache_shapes(base)]
    return list(zip(views[::2], views[1::2], strict=True))
