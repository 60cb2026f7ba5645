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
# Of the kernels for several tokens with one adapter: tokens and inputs of a tile, ranks at least and at most,
# and how many programs keep an H100 busy.
_TOKENS, _INPUTS, _FEWEST, _WIDEST, _PROGRAMS = 32, 256, 16, 64, 132
_STAGES = 4  # of reading ahead; two and three were slower on an H200
_TOGETHER = 16  # rows of a tile in decoding, which is the fewest that a tensor core takes
_PART_WORTH = 8  # a part of the sums is read again by each block of outputs


def out_block(outputs: Sequence[int]) -> int:
    """How many outputs a program computes where layers have so many; 0 if they cannot be one product."""
    if len(outputs) == 1:
        return _OUT_BLOCKS[0]
    return next((block for block in _OUT_BLOCKS if not any(one % block for one in outputs)), 0)


def _ends(outputs: Sequence[int]) -> list[int]:
    """Behind which output each layer but the last possible one ends."""
    return [sum(outputs[: at + 1]) for at in range(MOST_JOINT - 1)]


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
    _expand[(rows, triton.cdiv(B.shape[1], block))](
        S,
        B,
        slots,
        delta,
        B.shape[1],
        B.stride(0),
        ranks,
        rank,
        *_ends(outputs),
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
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scale: Tensor,
    slots: Tensor,
    outputs: Sequence[int],
    deltas: Sequence[Tensor],
) -> None:
    """As one_token_delta() for several tokens of each row: x [R, T, in], contiguous, and one delta
    [R, T, out] for each layer, too.

    S is summed in float32 and rounded to x's dtype, in which tensor cores multiply it with B.
    """
    rows, tokens, _ = x.shape
    tiles = rows * triton.cdiv(tokens, _TOKENS)
    _tiled(x.view(rows * tokens, -1), tokens, A, B, scale, slots, tiles, _TOKENS, False, outputs, deltas)


def gathered_delta(
    x: Tensor, A: Tensor, B: Tensor, scale: Tensor, tiles: Tensor, outputs: Sequence[int], delta: Tensor
) -> None:
    """As one_token_delta() where many rows have few adapters: rows of one adapter share what is read of it.
    tiles: what gathered() makes of the slots. Sums and rounding are those of chosen_delta().
    """
    parts = delta.split(list(outputs), dim=-1)
    _tiled(x, 1, A, B, scale, tiles, len(tiles), _TOGETHER, True, outputs, parts)


def gathered(slots: Tensor, adapters: int) -> Tensor:
    """Rows with the same slot in tiles of up to 16, for gathered_delta(): int32 [tiles, 1 + 16], in each the
    slot and then the rows, -1 where there is none. slots [R] int64, negative where there is no row, of so
    many adapters.
    """
    rows = len(slots)
    tiles = min(rows, adapters + rows // _TOGETHER)
    found = torch.empty(tiles, 1 + _TOGETHER, device=slots.device, dtype=torch.int32)
    _gather[(1,)](
        slots,
        found,
        rows,
        tiles,
        ROWS=triton.next_power_of_2(rows),
        TILES=triton.next_power_of_2(tiles),
        TOGETHER=_TOGETHER,
        num_warps=8,
    )
    return found


@triton.jit
def _gather(slots, tiles, rows, count, ROWS: tl.constexpr, TILES: tl.constexpr, TOGETHER: tl.constexpr):  # type: ignore[no-untyped-def]
    """Each row's place among those of its slot; every TOGETHER of them make a tile."""
    i, t = tl.arange(0, ROWS), tl.arange(0, TILES)
    mine = tl.load(slots + i, mask=i < rows, other=-1).to(tl.int32)
    alike = (mine[:, None] == mine[None, :]) & (mine[:, None] >= 0)
    before = tl.sum((alike & (i[None, :] < i[:, None])).to(tl.int32), axis=1)
    begins = (before % TOGETHER == 0) & (mine >= 0)
    number = tl.cumsum(begins.to(tl.int32), axis=0) - 1
    first = alike & (before[None, :] == (before // TOGETHER * TOGETHER)[:, None])
    tile = tl.sum(tl.where(first, number[None, :], 0), axis=1)
    for column in tl.static_range(1 + TOGETHER):
        tl.store(tiles + t * (1 + TOGETHER) + column, tl.full([TILES], -1, tl.int32), mask=t < count)
    tl.debug_barrier()  # the rows are written by other threads than what they replace
    tl.store(tiles + tile * (1 + TOGETHER), mine, mask=begins)
    tl.store(tiles + tile * (1 + TOGETHER) + 1 + before % TOGETHER, i, mask=mine >= 0)


def _tiled(
    x: Tensor,
    tokens: int,
    A: Tensor,
    B: Tensor,
    scale: Tensor,
    table: Tensor,
    tiles: int,
    height: int,
    is_gathered: bool,
    outputs: Sequence[int],
    deltas: Sequence[Tensor],
) -> None:
    """x [N, in] in so many tiles of `height` tokens each; table: the slots of rows of so many tokens behind
    each other, or what gathered() gives.
    """
    places, inputs = x.shape
    ranks, rank = A.shape[1], B.shape[2]
    width = min(_WIDEST, max(_FEWEST, triton.next_power_of_2(ranks)))
    programs = tiles * triton.cdiv(ranks, width)
    parts = max(1, min(_PROGRAMS // programs, inputs // _INPUTS, _PART_WORTH * inputs // B.shape[1]))
    share = triton.cdiv(inputs, parts * _INPUTS) * _INPUTS
    parts = triton.cdiv(inputs, share)
    S = torch.empty(parts, places, ranks, device=x.device, dtype=torch.float32)
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    _shrink_tile[(tiles, triton.cdiv(ranks, width), parts)](
        x,
        A,
        scale,
        table,
        S,
        places,
        tokens,
        inputs,
        share,
        x.stride(0),
        A.stride(0),
        scale.stride(0),
        ranks,
        rank,
        GATHERED=is_gathered,
        TOKENS=height,
        INPUTS=_INPUTS,
        WIDTH=width,
        PRECISION=precision,
        num_stages=_STAGES,
    )
    block = min(_OUT_BLOCKS[1], out_block(outputs))
    targets = [deltas[min(at, len(deltas) - 1)] for at in range(MOST_JOINT)]
    _expand_tile[(tiles, triton.cdiv(B.shape[1], block))](
        S,
        B,
        table,
        *targets,
        *(one.stride(-2) for one in targets),
        places,
        tokens,
        B.shape[1],
        parts,
        B.stride(0),
        ranks,
        rank,
        *_ends(outputs),
        GATHERED=is_gathered,
        TOKENS=height,
        WIDTH=max(_FEWEST, triton.next_power_of_2(rank)),
        BLOCK=block,
        PRECISION=precision,
    )


@triton.jit
def _tile(table, tokens, number, TOKENS: tl.constexpr, GATHERED: tl.constexpr):  # type: ignore[no-untyped-def]
    """The slot of a tile, its places in x, and which of these are there."""
    t = tl.arange(0, TOKENS)
    if GATHERED:
        at = table + number * (1 + TOKENS)
        slot = tl.load(at).to(tl.int64)
        place = tl.load(at + 1 + t).to(tl.int64)
        here = place >= 0
    else:
        each = tl.cdiv(tokens, TOKENS)
        row = number // each
        t += number % each * TOKENS
        slot = tl.load(table + row)
        place = (row * tokens + t).to(tl.int64)
        here = t < tokens
    return slot, place, here


@triton.jit
def _shrink_tile(  # type: ignore[no-untyped-def]
    x,
    A,
    scale,
    table,
    S,
    places,
    tokens,
    inputs,
    share,
    x_stride,
    slot_stride,
    scale_stride,
    ranks,
    rank,
    GATHERED: tl.constexpr,
    TOKENS: tl.constexpr,
    INPUTS: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """S[part, place, j] = scale·⟨A[slot, j], x[place]⟩ over one part of the inputs, for a tile."""
    part = tl.program_id(2)
    j = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    slot, place, here = _tile(table, tokens, tl.program_id(0), TOKENS, GATHERED)
    if slot < 0:
        return
    ours = x + place[:, None] * x_stride
    factor = A + slot * slot_stride + j[None, :] * inputs
    total = tl.zeros([TOKENS, WIDTH], dtype=tl.float32)
    for start in range(part * share, min((part + 1) * share, inputs), INPUTS):
        at = start + tl.arange(0, INPUTS)
        inside = at < inputs
        left = tl.load(ours + at[None, :], mask=here[:, None] & inside[None, :], other=0.0)
        right = tl.load(factor + at[:, None], mask=inside[:, None] & (j[None, :] < ranks), other=0.0)
        total += tl.dot(left, right, input_precision=PRECISION)
    by = tl.load(scale + j // rank * scale_stride + slot, mask=j < ranks, other=0.0)
    target = S + (part.to(tl.int64) * places + place[:, None]) * ranks + j[None, :]
    tl.store(target, total * by[None, :], mask=here[:, None] & (j[None, :] < ranks))


@triton.jit
def _expand_tile(  # type: ignore[no-untyped-def]
    S,
    B,
    table,
    delta_0,
    delta_1,
    delta_2,
    delta_3,
    stride_0,
    stride_1,
    stride_2,
    stride_3,
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
    GATHERED: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """delta[place, o] = Σⱼ B[slot, o, j]·S[place, j] for a tile and a block of outputs, all of one layer."""
    first = tl.program_id(1) * BLOCK
    slot, place, here = _tile(table, tokens, tl.program_id(0), TOKENS, GATHERED)
    if slot < 0:
        return
    layer = (first >= end_0).to(tl.int32) + (first >= end_1).to(tl.int32) + (first >= end_2).to(tl.int32)
    delta, stride, begin = delta_0, stride_0, 0
    if layer == 1:
        delta, stride, begin = delta_1, stride_1, end_0
    if layer == 2:
        delta, stride, begin = delta_2, stride_2, end_1
    if layer == 3:
        delta, stride, begin = delta_3, stride_3, end_2
    outs, j = first + tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    low = tl.zeros([TOKENS, WIDTH], dtype=tl.float32)
    for part in range(parts):
        source = S + (part * places + place[:, None]) * ranks + layer * rank + j[None, :]
        low += tl.load(source, mask=here[:, None] & (j[None, :] < rank), other=0.0)
    inside = (outs[None, :] < outputs) & (j[:, None] < rank)
    factor = tl.load(B + slot * slot_stride + outs[None, :] * rank + j[:, None], mask=inside, other=0.0)
    added = tl.dot(low.to(factor.dtype), factor, input_precision=PRECISION)
    target = delta + place[:, None] * stride + (outs - begin)[None, :]
    tl.store(target, added.to(delta.dtype.element_ty), mask=here[:, None] & (outs[None, :] < outputs))
