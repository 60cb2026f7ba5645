"""Experts as gpt-oss stores them: NAME_blocks [E, out, G, 16] of bytes, each two numbers of 4 bits, the lower
first, and NAME_scales [E, out, G], an exponent for each 32 numbers.

W[e, i, o] = v(blocks[e, o, i]) · 2^(s[e, o, i // 32] − 127), as the model holds it: [E, in, out]. The values
are those of E2M1. Source: OCP Microscaling Formats (MX) 1.0, section 5.3.3; gpt-oss, section 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from core.base_model.packed.packed_tensor import PLAIN, Stored, not_packed, read_tensor

_BLOCKS, _SCALES = "_blocks", "_scales"
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_BYTES, _BIAS = 16, 127  # of one block; of an exponent


@dataclass(frozen=True)
class _Mxfp4Weight:
    """The matrices of all experts."""

    parts: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]

    def plain(self, stored: Stored) -> Iterator[Tensor]:
        """An expert at a time."""
        values = torch.tensor(_VALUES)
        for blocks, scales in zip(*(read_tensor(name, stored) for name in self.parts), strict=True):
            pairs = torch.stack([values[(blocks & 15).int()], values[(blocks >> 4).int()]], dim=-1)
            numbers = pairs.flatten(-2) * torch.exp2(scales.float() - _BIAS)[..., None]
            yield numbers.flatten(-2).T.to(PLAIN[self.dtype])


def mxfp4_weights(stored: Stored, dtype: str) -> dict[str, _Mxfp4Weight]:
    """The packed weights by name. Raises InvalidModel for blocks that their scales do not fit."""
    names = [name.removesuffix(_BLOCKS) for name in stored if name.endswith(_BLOCKS)]
    return {name: _weight(name, stored, dtype) for name in names}


def _weight(name: str, stored: Stored, dtype: str) -> _Mxfp4Weight:
    parts = f"{name}{_BLOCKS}", f"{name}{_SCALES}"
    entries = [stored[part][1] for part in parts if part in stored]
    shapes = [entry.shape for entry in entries]
    is_packed = [entry.dtype for entry in entries] == ["U8", "U8"]
    if not is_packed or len(shapes[0]) != 4 or shapes[0] != (*shapes[1], _BYTES):
        raise not_packed(name, "4-bit floats with a scale for each 32 (mxfp4)")
    experts, rows, groups, _ = shapes[0]
    return _Mxfp4Weight(parts, dtype, (experts, groups * 2 * _BYTES, rows))
