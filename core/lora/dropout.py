"""Dropout whose mask depends on the run, its step, the layer and the position, and on nothing else.

A generator would give a run another mask for every change in who shares its batch. Here each element's bit is
a hash of where it stands, so a run trained in a group drops what it would drop alone, and a recomputed
forward drops the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_SIGN = 0x7FFFFFFF


class DropoutState:
    """Shared by all layers of a bank: for each of K adapters its rate, and a key that changes with every
    micro-batch.
    """

    def __init__(self, rates: Tensor) -> None:
        """rates [K], each in 0 ≤ p < 1."""
        self.rates = rates
        self.keys = torch.zeros(rates.shape[0], dtype=torch.int32, device=rates.device)
        self.first_row = torch.zeros((), dtype=torch.int32, device=rates.device)
        """Number of a batch's first row in its micro-batch; above 0 where that is done in pieces."""
        self.first_token = 0
        """Number of the first token in its row; above 0 where rows are computed in slices."""
        self.row_length = 0
        """Tokens of each row, for layers that are given those of all rows; 0 where that is not known."""


class Dropout(nn.Module):
    """Dropout for one layer's adapters."""

    salt: Tensor

    def __init__(self, state: DropoutState, layer: int) -> None:
        super().__init__()
        self.state = state
        # A tensor rather than a number, so that compiled layers share one graph.
        self.register_buffer(
            "salt", torch.tensor(_signed(layer * 0x9E3779B1 + 1), dtype=torch.int32, device=state.keys.device)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [N, T, in] with N/K consecutive rows for each adapter, or their tokens in a row [N·T, in];
        dropped and rescaled by 1/(1 − p) as in inverted dropout.
        """
        adapters, width = self.state.rates.shape[0], x.shape[-1]
        rows, tokens = x.shape[:2] if x.dim() > 2 else self._rows_of(len(x), adapters)
        each = rows // adapters
        keys = _mixed(self.state.keys ^ self.salt).repeat_interleave(each)  # [N]
        numbers = torch.arange(rows, device=x.device, dtype=torch.int32) % each + self.state.first_row
        keys = _mixed(keys ^ numbers)[:, None]  # by row of its run
        places = torch.arange(tokens, device=x.device, dtype=torch.int32) + self.state.first_token
        keys = _mixed(keys ^ places)[:, :, None]  # by token
        bits = _mixed(keys ^ torch.arange(width, device=x.device, dtype=torch.int32)) & _SIGN
        rates = self.state.rates.repeat_interleave(each)[:, None, None]
        kept = bits.to(torch.float32) >= rates * float(_SIGN)
        return (x * (kept / (1.0 - rates)).view(x.shape)).to(x.dtype)

    def _rows_of(self, count: int, adapters: int) -> tuple[int, int]:
        """Rows that `count` tokens stand in, and tokens of each; each a row of its own where that is not
        known.
        """
        length = self.state.row_length
        return (count // length, length) if length and not count % (adapters * length) else (count, 1)


def run_key(seed: int, micro_batch: int) -> int:
    """The key of one run at its micro-batch number, as a signed 32-bit number."""
    return _signed((seed * 0x85EBCA6B + micro_batch * 0xC2B2AE35 + 0x27D4EB2F) & 0xFFFFFFFF)


def _mixed(h: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 (Appleby, public domain) on int32, whose products wrap around."""
    h = h ^ ((h >> 16) & 0xFFFF)
    h = h * _signed(0x85EBCA6B)
    h = h ^ ((h >> 13) & 0x7FFFF)
    h = h * _signed(0xC2B2AE35)
    return h ^ ((h >> 16) & 0xFFFF)


def _signed(number: int) -> int:
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number >= 1 << 31 else number
