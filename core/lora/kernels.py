"""Triton kernels for decoding: what each row's own adapter adds to one layer's output.

torch has no product that picks its matrix by an index for each row, and gathering the factors first would
copy them for every token.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

_IN_BLOCK, _OUT_BLOCK = 1024, 128
_MANY_ROWS, _MOST_ROWS = 16, 64  # rows from which on B is read once for each adapter, not for each row
_MOST_RANKS = 64  # beyond which such a block does not fit into registers


def one_token_delta(
    x: Tensor, A: Tensor, B: Tensor, scale: Tensor, slots: Tensor, S: Tensor, delta: Tensor
) -> None:
    """delta[i] = scale[k]·B[k]·A[k]·x[i] with k = slots[i].

    x [R, in], A [K, r, in], B [K, out, r] and scale [K] with factors contiguous inside a slot; slots [R]
    int64. Writes S [R, r] float32, the intermediate, and delta [R, out].
    """
    rows, rank, outputs = x.shape[0], A.shape[1], B.shape[1]
    _shrink[(rows, rank)](x, A, scale, slots, S, x.shape[1], x.stride(0), A.stride(0), rank, BLOCK=_IN_BLOCK)
    blocks = triton.cdiv(outputs, _OUT_BLOCK)
    width = triton.next_power_of_2(rank)
    if _MANY_ROWS <= rows <= _MOST_ROWS and width <= _MOST_RANKS:
        together = max(16, triton.next_power_of_2(rows))  # what a product on tensors takes at least
        _expand_by_slot[(A.shape[0], blocks)](
            S,
            B,
            slots,
            delta,
            rows,
            outputs,
            B.stride(0),
            rank,
            ROWS=together,
            WIDTH=max(16, width),
            BLOCK=_OUT_BLOCK,
        )
        return
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


@triton.jit
def _expand_by_slot(  # type: ignore[no-untyped-def]
    S,
    B,
    slots,
    delta,
    rows,
    outputs,
    slot_stride,
    rank,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The same for one block of outputs of all rows of one slot."""
    slot, at = tl.program_id(0), tl.arange(0, ROWS)
    mine = tl.load(slots + at, mask=at < rows, other=-1) == slot
    if tl.sum(mine.to(tl.int32)) > 0:
        outs, ranks = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
        low = tl.load(
            S + at[:, None] * rank + ranks[None, :], mask=mine[:, None] & (ranks[None, :] < rank), other=0.0
        )
        inside = (outs[None, :] < outputs) & (ranks[:, None] < rank)
        factor = tl.load(
            B + slot * slot_stride + outs[None, :] * rank + ranks[:, None], mask=inside, other=0.0
        )
        added = tl.dot(low, factor.to(tl.float32), input_precision="ieee")
        places = delta + at[:, None] * outputs + outs[None, :]
        tl.store(places, added.to(delta.dtype.element_ty), mask=mine[:, None] & (outs[None, :] < outputs))
