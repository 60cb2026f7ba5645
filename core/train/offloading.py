"""The inputs of layers that are computed again wait in the host's memory until backward comes to them.

On CUDA copies go over a stream of their own: out while the layer itself computes, and back while backward is
at the layer behind it. So the device holds two or three of these inputs, whatever the number of layers (the
idea of Unsloth's offloaded checkpointing and of torch's save_on_cpu, which waits for each copy). Elsewhere
they are copied into another buffer, which is for tests alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

_BLOCK = 1 << 27  # bytes; torch's allocator of pinned memory rounds up to a power of two, which this is


# not every release has the public name
_empty_host_cache = getattr(torch.accelerator, "empty_host_cache", None) or torch._C._host_emptyCache


@dataclass
class _Waiting:
    """One input, in blocks of the host's memory."""

    number: int
    blocks: list[Tensor]
    shape: torch.Size
    dtype: torch.dtype


class HostStash:
    """Where the inputs of layers wait. Its pinned memory is kept from one micro-batch to the next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._blocks: list[Tensor] = []
        self.begin()

    def begin(self) -> None:
        """Forget what waits, before a micro-batch; also that of one that failed."""
        self._taken = 0
        self._waiting: list[_Waiting] = []
        self._leaving: tuple[Tensor, torch.cuda.Event] | None = None
        self._arriving: dict[int, tuple[Tensor, torch.cuda.Event | None]] = {}

    def close(self) -> None:
        """Give the pinned memory back to the system."""
        self.begin()
        self._blocks = []
        if self._stream is not None:
            self._stream.synchronize()
            _empty_host_cache()

    def recomputed(self, compute: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """compute(*given, **named), to be computed again in backward from inputs that wait here.

        Within checkpoint() tensors are kept by hooks of its own, so that these see what it keeps itself: the
        positional arguments.
        """
        with saved_tensors_hooks(self._send, self._fetch):
            return checkpoint(compute, *given, use_reentrant=False, preserve_rng_state=False, **named)

    # Out.

    def _send(self, tensor: Tensor) -> _Waiting | Tensor:
        if not (tensor.is_floating_point() and tensor.numel()):
            return tensor
        tensor = tensor.contiguous()
        parts = tensor.view(-1).view(torch.uint8).split(_BLOCK)
        blocks = [self._block()[: part.numel()] for part in parts]
        waiting = _Waiting(len(self._waiting), blocks, tensor.shape, tensor.dtype)
        self._copy_out(tensor, list(zip(blocks, parts, strict=True)))
        self._waiting.append(waiting)
        return waiting

    def _block(self) -> Tensor:
        if self._taken == len(self._blocks):
            pinned = self._stream is not None
            self._blocks.append(torch.empty(_BLOCK, dtype=torch.uint8, pin_memory=pinned))
        self._taken += 1
        return self._blocks[self._taken - 1]

    def _copy_out(self, tensor: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> None:
        if self._stream is None:
            for block, part in pairs:
                block.copy_(part)
            return
        computing = torch.cuda.current_stream(self._device)
        self._let_leave(computing)
        self._stream.wait_stream(computing)
        with torch.cuda.stream(self._stream):
            for block, part in pairs:
                block.copy_(part, non_blocking=True)
        self._leaving = tensor, self._stream.record_event()

    def _let_leave(self, computing: torch.cuda.Stream) -> None:
        """Let go of the last one that was sent, whose memory is used again in the order of the computing
        stream. To mark it as used by the other stream instead would keep all of them, since the host is far
        ahead of the device.
        """
        if self._leaving is not None:
            computing.wait_event(self._leaving[1])
            self._leaving = None

    # Back.

    def _fetch(self, waiting: _Waiting | Tensor) -> Tensor:
        if isinstance(waiting, Tensor):
            return waiting
        if self._stream is not None:
            self._let_leave(torch.cuda.current_stream(self._device))
        if waiting.number not in self._arriving:
            self._arriving[waiting.number] = self._sent_back(waiting)
        tensor, ready = self._arriving.pop(waiting.number)
        if ready is not None:
            torch.cuda.current_stream(self._device).wait_event(ready)
        if waiting.number and waiting.number - 1 not in self._arriving:
            before = self._waiting[waiting.number - 1]
            self._arriving[before.number] = self._sent_back(before)
        return tensor

    def _sent_back(self, waiting: _Waiting) -> tuple[Tensor, torch.cuda.Event | None]:
        """A tensor on the device, and when its numbers are there. Its memory is the computing stream's, which
        also gives it back.
        """
        tensor = torch.empty(waiting.shape, dtype=waiting.dtype, device=self._device)
        pairs = list(zip(tensor.view(-1).view(torch.uint8).split(_BLOCK), waiting.blocks, strict=True))
        if self._stream is None:
            for part, block in pairs:
                part.copy_(block)
            return tensor, None
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for part, block in pairs:
                part.copy_(block, non_blocking=True)
        return tensor, self._stream.record_event()
