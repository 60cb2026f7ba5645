"""Weights as 8-bit floats: W = Q · s, a scale for each block, row, or for all.

DeepSeek's repositories and those of transformers (quant_method fp8) keep the scales of NAME under
NAME_scale_inv, which is multiplied for all its name says; compressed-tensors keeps them under NAME_scale.
Sources: DeepSeek-V3, section 3.3.2 and its inference/kernel.py (blocks begin anew at each multiple of the
block's size, so the last may be cut off); transformers.integrations.finegrained_fp8; compressed-tensors'
quantization.lifecycle.forward.dequantize.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core.base_model.packed.packed_tensor import PLAIN, Stored, not_packed, read_tensor
from core.base_model.packings import COMPRESSED, FP8

_SCALES = {FP8: "_scale_inv", COMPRESSED: "_scale"}
_OF_ACTIVATIONS = {FP8: "activation_scale", COMPRESSED: "input_scale"}
_FLOATS, _EXPONENTS = ("F8_E4M3", "F8_E5M2"), ("F8_E8M0", "U8")
_HOW = "8-bit floats with scales"
_BIAS = 127


@dataclass(frozen=True)
class _Fp8Weight:
    """A weight [..., rows, columns] whose last two sizes are in blocks."""

    parts: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]
    block: tuple[int, ...]
    """Rows and columns that share a scale."""

    def plain(self, stored: Stored) -> Iterator[Tensor]:
        """A matrix at a time."""
        weight, scale = (read_tensor(name, stored) for name in self.parts[:2])
        is_exponent = stored[self.parts[1]][1].dtype in _EXPONENTS
        scales = torch.exp2(scale.float() - _BIAS) if is_exponent else scale.float()
        grid = _grid(self.shape, self.block)
        rows, columns = self.shape[-2:]
        for matrix, part in zip(weight.view(-1, rows, columns), scales.reshape(-1, *grid[-2:]), strict=True):
            wide = part.repeat_interleave(self.block[0], 0)[:rows]
            wide = wide.repeat_interleave(self.block[1], 1)[:, :columns]
            yield (matrix.float() * wide).to(PLAIN[self.dtype])


def fp8_weights(stored: Stored, config: dict[str, Any], dtype: str, method: str) -> dict[str, _Fp8Weight]:
    """The packed weights by name, of FP8 or COMPRESSED. The scales of activations are left out: here these
    are in the base's dtype.

    Raises InvalidModel for a packed weight without its scales, and for scales that do not fit.
    """
    blocks = _told_blocks(config["quantization_config"])
    names = [name for name, (_, entry) in stored.items() if entry.dtype in _FLOATS]
    return {name: _weight(name, stored, blocks, dtype, method) for name in names}


def _told_blocks(how: dict[str, Any]) -> list[tuple[int, ...]]:
    """The sizes of blocks that the configuration names."""
    groups = how.get("config_groups")
    weights = [one.get("weights") or {} for one in groups.values()] if isinstance(groups, dict) else []
    told = [how.get("weight_block_size"), *(one.get("block_structure") for one in weights)]
    return [tuple(one) for one in told if isinstance(one, list) and len(one) == 2 and min(one) > 0]


def _weight(
    name: str, stored: Stored, blocks: Sequence[tuple[int, ...]], dtype: str, method: str
) -> _Fp8Weight:
    scale, shape = f"{name}{_SCALES[method]}", stored[name][1].shape
    if scale not in stored or stored[scale][1].dtype not in (*_EXPONENTS, *PLAIN):
        raise not_packed(name, _HOW)
    block = _block(shape, stored[scale][1].shape, blocks)
    if block is None:
        raise not_packed(name, _HOW)
    activations = f"{name.rpartition('.')[0]}.{_OF_ACTIVATIONS[method]}"
    more = [one for one in (activations, f"{name}_{_OF_ACTIVATIONS[method]}") if one in stored]
    return _Fp8Weight((name, scale, *more), dtype, shape, block)


def _block(
    shape: tuple[int, ...], scales: tuple[int, ...], told: Sequence[tuple[int, ...]]
) -> tuple[int, ...] | None:
    """The rows and columns that share a scale: those that are told where they fit the grid of scales, else
    those that part the weight evenly; None if nothing does.
    """
    if len(shape) < 2:
        return None
    if fitting := [one for one in told if _grid(shape, one) == scales]:
        return fitting[0]
    leading, rest = scales[: len(shape) - 2], scales[len(shape) - 2 :]
    grid = (*rest, 1, 1)[:2]
    is_even = not any(not parts or size % parts for size, parts in zip(shape[-2:], grid, strict=True))
    if leading != shape[:-2] or len(rest) > 2 or not is_even:
        return None
    return shape[-2] // grid[0], shape[-1] // grid[1]


def _grid(shape: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scales of a weight in such blocks."""
    return (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))
