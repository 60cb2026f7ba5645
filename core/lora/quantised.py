"""A frozen linear layer whose weight is held in 4 or 8 bits, and computes in the base's dtype, or in FP8
(core/lora/fp8.py).

NF4 is QLoRA's (Dettmers et al. 2023, arXiv 2305.14314, section 3): blocks of 64 numbers share a scale, each
number is one of 16 quantiles of the normal distribution, and the scales are held in 8 bits themselves (double
quantisation). INT8 has one scale for each row of W. Both are bitsandbytes' own numbers. The weight is made
anew in each pass, forward and backward, one layer at a time, and never kept.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.lora.fp8 import fp8_product, quantised_rows

NF4, INT8, FP8 = "nf4", "int8", "fp8"
_BLOCK, _NESTED_BLOCK = 64, 256  # numbers that share a scale, and scales that do; bitsandbytes' defaults
_INT8_STEPS = 127.0
_HAS_TRITON = importlib.util.find_spec("triton") is not None  # builds for Windows bring none
_A_BYTE = torch.float8_e4m3fn
_OF_W = {NF4: 3, INT8: 2}  # how many of the tensors grow with W; behind them come NF4's code and mean, 1 KB


@dataclass(frozen=True)
class Packed:
    """W [out, in], quantised."""

    how: str
    """NF4, INT8 or FP8."""
    tensors: tuple[Tensor, ...]
    """NF4: two numbers a byte, the scales of blocks in 8 bits, the scales of these, their code, their mean.
    INT8: W in steps [out, in], the largest number of each row [out]. FP8: see packed_rows().
    """
    shape: tuple[int, int]
    """(out, in)."""
    dtype: torch.dtype
    """What it computes in."""

    def dense(self) -> Tensor:
        """W in the dtype that it computes in, a copy."""
        return dequantised(self.tensors, self.how, *self.shape, self.dtype)

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        return sum(one.nbytes for one in self.tensors)


class QuantisedLinear(nn.Module):
    """A linear layer that holds a Packed in the place of its weight; the bias stays as it is."""

    def __init__(self, packed: Packed, bias: Tensor | None, *, transposed: bool = False) -> None:
        """transposed: whether the base's files hold W as [in, out] (GPT-2's Conv1D)."""
        super().__init__()
        self.how, self.shape, self.dtype, self.transposed = packed.how, packed.shape, packed.dtype, transposed
        self.out_features, self.in_features = packed.shape
        self._names = [f"packed_{number}" for number in range(len(packed.tensors))]
        self._integers: dict[str, torch.dtype] = {}  # of what is held as other bytes, what it is
        for name, tensor in zip(self._names, packed.tensors, strict=True):
            self.register_buffer(name, tensor, persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def become_divisible(self) -> None:
        """Hold what grows with W in parameters, which torch's fully_shard lays out over several processes;
        bytes as float8 of the same bits, since before torch 2.13 it takes no integers.

        Raises KeyError for FP8, which is not laid out.
        """
        for name in self._names[: _OF_W[self.how]]:
            tensor = getattr(self, name)
            delattr(self, name)
            if not tensor.is_floating_point():
                self._integers[name] = tensor.dtype
                tensor = tensor.view(_A_BYTE)
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    @property
    def packed(self) -> Packed:
        """The weight as it is held."""
        tensors = tuple(self._tensor(name) for name in self._names)
        return Packed(self.how, tensors, self.shape, self.dtype)

    def _tensor(self, name: str) -> Tensor:
        held: Tensor = getattr(self, name)
        return held.view(self._integers[name]) if name in self._integers else held

    @property
    def device(self) -> torch.device:
        """Where it is held."""
        return self.packed_0.device  # type: ignore[return-value]

    @property
    def weight(self) -> Tensor:
        """W in the dtype that it computes in, made anew each time."""
        return self.packed.dense()

    def forward(self, x: Tensor) -> Tensor:
        return frozen_product(x, self.packed, self.bias)


@torch.library.custom_op("lora_workbench::dequantised", mutates_args=())
def dequantised(packed: Sequence[Tensor], how: str, outputs: int, inputs: int, dtype: torch.dtype) -> Tensor:
    """W [outputs, inputs] of what Packed.tensors holds. bitsandbytes must have been imported for NF4."""
    if how == INT8:
        steps, largest = packed
        out = torch.empty(outputs, inputs, dtype=dtype, device=steps.device)
        return torch.mul(steps, (largest / _INT8_STEPS)[:, None], out=out)  # in float32, rounded once
    if how == FP8:
        rows, scale, _ = packed
        return (rows.float() * scale[:, None]).to(dtype)
    return _nf4_dense(packed, (outputs, inputs), dtype)


def _nf4_dense(packed: Sequence[Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    numbers, scales, nested, code, mean = packed
    if numbers.is_cuda and _HAS_TRITON:
        from core.lora import nf4_kernels

        if nf4_kernels.takes(numbers, shape):
            made = torch.empty(shape, dtype=dtype, device=numbers.device)
            nf4_kernels.made_dense(numbers, scales, nested, code, mean, _BLOCK, _NESTED_BLOCK, made)
            return made
    ops: Any = torch.ops.bitsandbytes
    wide = ops.dequantize_blockwise(scales, nested, code, _NESTED_BLOCK, torch.float32) + mean
    found: Tensor = ops.dequantize_4bit(numbers, wide, _BLOCK, NF4, shape, dtype)
    return found


@dequantised.register_fake
def _(packed, how, outputs, inputs, dtype):  # type: ignore[no-untyped-def]
    return packed[0].new_empty(outputs, inputs, dtype=dtype)


def frozen_product(x: Tensor, packed: Packed, bias: Tensor | None) -> Tensor:
    """x·Wᵀ + bias, [N, …, out]; backward keeps neither x nor W."""
    if packed.how == FP8:
        return fp8_product(x, *quantised_rows(x.detach()), packed.tensors, bias)
    return _product(x, packed.tensors, packed.how, packed.shape[0], bias)


@torch.library.custom_op("lora_workbench::quantised_product", mutates_args=())
def _product(x: Tensor, packed: Sequence[Tensor], how: str, outputs: int, bias: Tensor | None) -> Tensor:
    weight = dequantised(packed, how, outputs, x.shape[-1], x.dtype)
    return torch.nn.functional.linear(x, weight, bias)


@_product.register_fake
def _(x, packed, how, outputs, bias):  # type: ignore[no-untyped-def]
    return x.new_empty(*x.shape[:-1], outputs)


def _keep(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, packed, ctx.how, ctx.outputs, _bias = inputs
    ctx.inputs = x.shape[-1]
    ctx.save_for_backward(*packed)


def _backward(ctx, dy):  # type: ignore[no-untyped-def]
    packed = ctx.saved_tensors  # once: a layer that is computed again gives them once
    return _product_backward(dy, packed, ctx.how, ctx.inputs), [None] * len(packed), None, None, None


# One operator, as all backward passes of quantised layers are: made by one of its own, W would follow from
# inputs of the forward pass alone, and a compiler's partitioner could make it there and keep it.
@torch.library.custom_op("lora_workbench::quantised_product_backward", mutates_args=())
def _product_backward(dy: Tensor, packed: Sequence[Tensor], how: str, inputs: int) -> Tensor:
    return torch.matmul(dy, dequantised(packed, how, dy.shape[-1], inputs, dy.dtype))


@_product_backward.register_fake
def _(dy, packed, how, inputs):  # type: ignore[no-untyped-def]
    return dy.new_empty(*dy.shape[:-1], inputs)


_product.register_autograd(_backward, setup_context=_keep)
