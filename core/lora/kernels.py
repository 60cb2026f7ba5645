"""Triton kernels for answers: what each row's own adapter adds to one layer's output, or to that of several
layers that are given the same input.

torch has no product that picks its matrix by an index for each row, and gathering the factors first would
copy them for every token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from core.lora.ops import JOINT_OUTPUTS, MOST_JOINT

_IN_BLOCK, _IN_WARPS = 2048, 8
_MANY, _RANKS = 1024, 2  # from so many rows times ranks on a program computes several of these
_OUT_BLOCKS = (256, 128, JOINT_OUTPUTS)
# Of the kernels for several tokens of each row: tokens and inputs of a tile, ranks at least and at most, and
# how many programs keep an H100 busy.
_TOKENS, _TOKENS_OUT, _INPUTS, _FEWEST, _WIDEST, _PROGRAMS = 32, 32, 256, 16, 64, 132


def out_block(outputs: Sequence[int]) -> int:
    """How many outputs a program computes where layers have so many; 0 if they cannot be one product."""
    if len(outputs) == 1:
        return _OUT_BLOCKS[0]
    return next((block for block in _OUT_BLOCKS if not any(one % block for one in outputs)), 0)


def one_token_delta(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scale: Tensor,
    slots: Tensor,
    outputs: Sequence[int],
    S: Tensor,
    delta: Tensor,
) -> None:
    """delta[i] = scale[p, k]·B[k]·A[k]·x[i] with k = slots[i], for each layer p behind the other.

    x [R, in], A [K, P·r, in], B [K, out, r] and scale [P, K] with factors contiguous inside a slot; slots [R]
    int64, negative where there is no row, whose delta is left as it is; outputs: of each of the P layers,
    `out` in all. Writes S [R, P·r] float32, the intermediate, and delta [R, out].
    """
    rows, ranks, rank = x.shape[0], A.shape[1], B.shape[2]
    block = out_block(outputs)
    each = _RANKS if rows * ranks > _MANY else 1
    _shrink[(rows, triton.cdiv(ranks, each))](
        x,
        A,
        scale,
        slots,
        S,
        x.shape[1],
        x.stride(0),
        A.stride(0),
        scale.stride(0),
        ranks,
        rank,
        BLOCK=_IN_BLOCK,
        EACH=each,
        num_warps=_IN_WARPS,
    )
    ends = [sum(outputs[: at + 1]) for at in range(MOST_JOINT - 1)]
    _expand[(rows, triton.cdiv(B.shape[1], block))](
        S,
        B,
        slots,
        delta,
        B.shape[1],
        B.stride(0),
        ranks,
        rank,
        *ends,
        WIDTH=triton.next_power_of_2(rank),
        BLOCK=block,
    )


@triton.jit
def _shrink(  # type: ignore[no-untyped-def]
    x,
    A,
    scale,
    slots,
    S,
    inputs,
    x_stride,
    slot_stride,
    scale_stride,
    ranks,
    rank,
    BLOCK: tl.constexpr,
    EACH: tl.constexpr,
):
    """S[row, j] = scale·⟨A[slot, j], x[row]⟩ for a few j."""
    row, j = tl.program_id(0), tl.program_id(1) * EACH + tl.arange(0, EACH)
    slot = tl.load(slots + row)
    if slot < 0:  # no row is there
        return
    factor = A + slot * slot_stride + j[:, None] * inputs
    total = tl.zeros([EACH, BLOCK], dtype=tl.float32)
    for start in range(0, inputs, BLOCK):
        at = start + tl.arange(0, BLOCK)
        inside = at < inputs
        ours = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
        there = (j[:, None] < ranks) & inside[None, :]
        total += ours[None, :] * tl.load(factor + at[None, :], mask=there, other=0.0).to(tl.float32)
    by = tl.load(scale + j // rank * scale_stride + slot, mask=j < ranks, other=0.0)
    tl.store(S + row * ranks + j, tl.sum(total, axis=1) * by, mask=j < ranks)


@triton.jit
def _expand(  # type: ignore[no-untyped-def]
    S,
    B,
    slots,
    delta,
    outputs,
    slot_stride,
    ranks,
    rank,
    end_0,
    end_1,
    end_2,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """delta[row, o] = Σⱼ B[slot, o, j]·S[row, j] for one block of outputs, all of one layer."""
    row, first = tl.program_id(0), tl.program_id(1) * BLOCK
    slot = tl.load(slots + row)
    if slot < 0:
        return
    layer = (first >= end_0).to(tl.int32) + (first >= end_1).to(tl.int32) + (first >= end_2).to(tl.int32)
    outs, places = first + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    low = tl.load(S + row * ranks + layer * rank + places, mask=places < rank, other=0.0)
    inside = (outs[:, None] < outputs) & (places[None, :] < rank)
    factor = tl.load(B + slot * slot_stride + outs[:, None] * rank + places[None, :], mask=inside, other=0.0)
    added = tl.sum(factor.to(tl.float32) * low[None, :], axis=1)
    tl.store(delta + row * outputs + outs, added.to(delta.dtype.element_ty), mask=outs < outputs)


def chosen_delta(
    x: Tensor, A: Tensor, B: Tensor, scale: Tensor, slots: Tensor, outputs: Sequence[int], delta: Tensor
) -> None:
    """As one_token_delta() for several tokens of each row, x [R, T, in] and delta [R, T, out], contiguous.

    S is summed in float32 and rounded to x's dtype, in which tensor cores multiply it with B.
    """
    rows, tokens, inputs = x.shape
    ranks, rank = A.shape[1], B.shape[2]
    tiles = triton.cdiv(tokens, _TOKENS)
    width = min(_WIDEST, max(_FEWEST, triton.next_power_of_2(ranks)))
    programs = rows * tiles * triton.cdiv(ranks, width)
    parts = max(1, min(_PROGRAMS // programs, inputs // _INPUTS))
    share = triton.cdiv(inputs, parts * _INPUTS) * _INPUTS
    parts = triton.cdiv(inputs, share)
    S = torch.empty(parts, rows * tokens, ranks, device=x.device, dtype=torch.float32)
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    _shrink_chosen[(rows * tiles, triton.cdiv(ranks, width), parts)](
        x,
        A,
        scale,
        slots,
        S,
        tokens,
        inputs,
        share,
        A.stride(0),
        scale.stride(0),
        ranks,
        rank,
        TOKENS=_TOKENS,
        INPUTS=_INPUTS,
        WIDTH=width,
        PRECISION=precision,
    )
    block = min(_OUT_BLOCKS[1], out_block(outputs))
    ends = [sum(outputs[: at + 1]) for at in range(MOST_JOINT - 1)]
    tiles = triton.cdiv(tokens, _TOKENS_OUT)
    _expand_chosen[(rows * tiles, triton.cdiv(B.shape[1], block))](
        S,
        B,
        slots,
        delta,
        rows * tokens,
        tokens,
        B.shape[1],
        parts,
        B.stride(0),
        ranks,
        rank,
        *ends,
        TOKENS=_TOKENS_OUT,
        WIDTH=max(_FEWEST, triton.next_power_of_2(rank)),
        BLOCK=block,
        PRECISION=precision,
    )


@triton.jit
def _shrink_chosen(  # type: ignore[no-untyped-def]
    x,
    A,
    scale,
    slots,
    S,
    tokens,
    inputs,
    share,
    slot_stride,
    scale_stride,
    ranks,
    rank,
    TOKENS: tl.constexpr,
    INPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """S[part, row·T + t, j] = scale·⟨A[slot, j], x[row, t]⟩ over one part of the inputs, for a tile."""
    tiles, part = tl.cdiv(tokens, TOKENS), tl.program_id(2)
    row, part_stride = tl.program_id(0) // tiles, tl.num_programs(0) // tiles * tokens
    t = tl.program_id(0) % tiles * TOKENS + tl.arange(0, TOKENS)
    j = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    slot = tl.load(slots + row)
    if slot < 0:
        return
    ours = x + (row * tokens + t[:, None]).to(tl.int64) * inputs
    factor = A + slot * slot_stride + j[None, :] * inputs
    total = tl.zeros([TOKENS, WIDTH], dtype=tl.float32)
    for start in range(part * share, min((part + 1) * share, inputs), INPUTS):
        at = start + tl.arange(0, INPUTS)
        inside = at < inputs
        left = tl.load(ours + at[None, :], mask=(t[:, None] < tokens) & inside[None, :], other=0.0)
        right = tl.load(factor + at[:, None], mask=inside[:, None] & (j[None, :] < ranks), other=0.0)
        total += tl.dot(left, right, input_precision=PRECISION)
    by = tl.load(scale + j // rank * scale_stride + slot, mask=j < ranks, other=0.0)
    place = part.to(tl.int64) * part_stride + row * tokens + t
    target = S + place[:, None] * ranks + j[None, :]
    tl.store(target, total * by[None, :], mask=(t[:, None] < tokens) & (j[None, :] < ranks))


@triton.jit
def _expand_chosen(  # type: ignore[no-untyped-def]
    S,
    B,
    slots,
    delta,
    places,
    tokens,
    outputs,
    parts,
    slot_stride,
    ranks,
    rank,
    end_0,
    end_1,
    end_2,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """delta[row, t, o] = Σⱼ B[slot, o, j]·S[row, t, j] for a tile of t and one block of outputs."""
    tiles, first = tl.cdiv(tokens, TOKENS), tl.program_id(1) * BLOCK
    row = tl.program_id(0) // tiles
    t = tl.program_id(0) % tiles * TOKENS + tl.arange(0, TOKENS)
    slot = tl.load(slots + row)
    if slot < 0:
        return
    layer = (first >= end_0).to(tl.int32) + (first >= end_1).to(tl.int32) + (first >= end_2).to(tl.int32)
    outs, j = first + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    place = (row * tokens + t).to(tl.int64)
    here = (t[:, None] < tokens) & (j[None, :] < rank)
    low = tl.zeros([TOKENS, WIDTH], dtype=tl.float32)
    for part in range(parts):
        source = S + (part * places + place[:, None]) * ranks + layer * rank + j[None, :]
        low += tl.load(source, mask=here, other=0.0)
    inside = (outs[None, :] < outputs) & (j[:, None] < rank)
    factor = tl.load(B + slot * slot_stride + outs[None, :] * rank + j[:, None], mask=inside, other=0.0)
    added = tl.dot(low.to(factor.dtype), factor, input_precision=PRECISION)
    target = delta + place[:, None] * outputs + outs[None, :]
    tl.store(target, added.to(delta.dtype.element_ty), mask=(t[:, None] < tokens) & (outs[None, :] < outputs))
