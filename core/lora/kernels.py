"""Triton kernels for decoding: what each row's own adapter adds to one layer's output.

torch has no product that picks its matrix by an index for each row, and gathering the factors first would
copy them for every token.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_IN_BLOCK, _IN_WARPS, _OUT_BLOCK = 1024, 8, 128


def one_token_delta(
    x: Tensor, A: Tensor, B: Tensor, scale: Tensor, slots: Tensor, S: Tensor, delta: Tensor
) -> None:
    """delta[i] = scale[k]·B[k]·A[k]·x[i] with k = slots[i].

    x [R, in], A [K, r, in], B [K, out, r] and scale [K] with factors contiguous inside a slot; slots [R]
    int64. Writes S [R, r] float32, the intermediate, and delta [R, out].
    """
    rows, rank, outputs = x.shape[0], A.shape[1], B.shape[1]
    strides = x.stride(0), A.stride(0)
    _shrink[(rows, rank)](
        x, A, scale, slots, S, x.shape[1], *strides, rank, BLOCK=_IN_BLOCK, num_warps=_IN_WARPS
    )
    blocks = triton.cdiv(outputs, _OUT_BLOCK)
    width = triton.next_power_of_2(rank)
    _expand[(rows, blocks)](S, B, slots, delta, outputs, B.stride(0), rank, WIDTH=width, BLOCK=_OUT_BLOCK)


@triton.jit
def _shrink(x, A, scale, slots, S, inputs, x_stride, slot_stride, rank, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """S[row, j] = scale·⟨A[slot, j], x[row]⟩, one program each."""
    row, j = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row)
    factor = A + slot * slot_stride + j * inputs
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, inputs, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < inputs
        ours = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
        total += ours * tl.load(factor + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(S + row * rank + j, tl.sum(total, axis=0) * tl.load(scale + slot))


@triton.jit
def _expand(S, B, slots, delta, outputs, slot_stride, rank, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """delta[row, o] = Σⱼ B[slot, o, j]·S[row, j] for one block of outputs."""
    row = tl.program_id(0)
    slot = tl.load(slots + row)
    outs, ranks = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    low = tl.load(S + row * rank + ranks, mask=ranks < rank, other=0.0)
    inside = (outs[:, None] < outputs) & (ranks[None, :] < rank)
    factor = tl.load(B + slot * slot_stride + outs[:, None] * rank + ranks[None, :], mask=inside, other=0.0)
    added = tl.sum(factor.to(tl.float32) * low[None, :], axis=1)
    tl.store(delta + row * outputs + outs, added.to(delta.dtype.element_ty), mask=outs < outputs)
