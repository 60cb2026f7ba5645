"""Weights that bitsandbytes has packed to 4 bits: a byte holds two, blocks share a scale, and with double
quantisation the scales are packed in 8 bits themselves. Source: bitsandbytes.functional.QuantState.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.base_model.packed.packed_tensor import DTYPES, PLAIN, Stored, not_packed, read_bytes, read_tensor
from core.base_model.quantisation import NF4, require_quantising

_STATE = ".quant_state.bitsandbytes__"
_KINDS, _BLOCKS = ("nf4", "fp4"), (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class _Nf4Weight:
    """A packed weight, and what is known of it beside its bytes."""

    parts: tuple[str, ...]
    kind: str
    dtype: str
    """Of the original, which it computes in."""
    shape: tuple[int, ...]
    block: int
    nested_block: int
    nested_offset: float

    def plain(self, stored: Stored) -> Iterator[Tensor]:
        """Whole."""
        ops: Any = torch.ops.bitsandbytes
        name = self.parts[0]
        scales = read_tensor(f"{name}.absmax", stored)
        if _is_nested(name, stored):
            nested, code = (read_tensor(f"{name}.nested_{part}", stored) for part in ("absmax", "quant_map"))
            scales = ops.dequantize_blockwise(scales, nested, code, self.nested_block, torch.float32)
            scales = scales + self.nested_offset
        packed = read_tensor(name, stored).view(-1, 1)
        yield ops.dequantize_4bit(packed, scales, self.block, self.kind, self.shape, PLAIN[self.dtype])


def nf4_weights(stored: Stored) -> dict[str, _Nf4Weight]:
    """The packed weights by name. Raises InvalidModel for files that are not what bitsandbytes writes,
    InvalidConfig without bitsandbytes.
    """
    require_quantising(NF4)
    import bitsandbytes  # noqa: F401  (its operators)

    return {name: _weight(name, stored) for name in stored if _is_packed(name, stored)}


def _is_packed(name: str, stored: Stored) -> bool:
    return any(f"{name}{_STATE}{kind}" in stored for kind in _KINDS)


def _weight(name: str, stored: Stored) -> _Nf4Weight:
    try:
        weight = _told(name, stored)
        sound = _fits(weight, name, stored)
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise not_packed(name, "bitsandbytes packs a weight to 4 bits")
    return weight


def _told(name: str, stored: Stored) -> _Nf4Weight:
    kind = next(kind for kind in _KINDS if f"{name}{_STATE}{kind}" in stored)
    told: dict[str, Any] = json.loads(bytes(read_bytes(f"{name}{_STATE}{kind}", stored)))
    return _Nf4Weight(
        (name, *(one for one in stored if one.startswith(f"{name}."))),
        kind,
        DTYPES[told["dtype"]],
        tuple(int(size) for size in told["shape"]),
        int(told["blocksize"]),
        int(told.get("nested_blocksize", 0)),
        float(told.get("nested_offset", 0.0)),
    )


def _fits(weight: _Nf4Weight, name: str, stored: Stored) -> bool:
    """Whether the bytes that there are fit what is told of them."""
    count = math.prod(weight.shape)
    if len(weight.shape) != 2 or count <= 0 or weight.block not in _BLOCKS:
        return False
    blocks, entry = -(-count // weight.block), stored[name][1]
    scales = stored[f"{name}.absmax"][1].count
    halves = (entry.dtype, entry.count, scales) == ("U8", -(-count // 2), blocks)
    if not _is_nested(name, stored):
        return halves
    nested = stored[f"{name}.nested_absmax"][1].count
    return halves and weight.nested_block in _BLOCKS and nested == -(-blocks // weight.nested_block)


def _is_nested(name: str, stored: Stored) -> bool:
    return f"{name}.nested_absmax" in stored
