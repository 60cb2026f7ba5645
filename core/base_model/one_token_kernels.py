"""Triton kernels for decoding: one new token of each row attends to what its row has read.

torch's kernel for attention with a mask goes through all the room of a row in one program, one key after the
other. Here a row's keys are shared out among programs, which is Flash-Decoding
(https://pytorch.org/blog/flash-decoding/), and none reads behind its row's end. The arithmetic is that of
FlashAttention (arXiv 2205.14135, algorithm 1): scores and sums in float32, weights in the values' dtype.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCKS = (64, 32, 16)  # places that are read at a time
_SHARED_BYTES = 64 << 10  # that keys and values on their way may take; small cards have 99 KiB
_STAGES = 3
_PROGRAMS = 264  # two for each multiprocessor of an H100; about as many keep the memory busy
_MOST_PARTS = 64
_LOG2_E = 1.4426950408889634


def attend(
    query: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scale: float, window: int, out: Tensor
) -> None:
    """out [rows, heads, value_width] from query [rows, heads, key_width], keys and values [rows, kv_heads,
    capacity, width] and positions [rows] int64, the place of the new token, whose key is there already.

    A row sees places up to its position, and with a window > 0 only that many of them.
    """
    rows, heads, key_width = query.shape
    kv_heads, capacity, value_width = keys.shape[1], keys.shape[2], values.shape[3]
    # The fewest rows that a tensor core takes are 16.
    key, value = (max(16, triton.next_power_of_2(width)) for width in (key_width, value_width))
    a_place = (key + value) * keys.element_size() * _STAGES
    block = next((size for size in _BLOCKS if size * a_place <= _SHARED_BYTES), _BLOCKS[-1])
    parts = min(-(-_PROGRAMS // (rows * kv_heads)), -(-capacity // block), _MOST_PARTS)
    share = -(-capacity // (parts * block)) * block
    parts = -(-capacity // share)
    groups = heads // kv_heads
    if parts == 1:
        sums, found = out, out
    else:
        sums = torch.empty(rows, heads, parts, 2, device=query.device, dtype=torch.float32)
        found = torch.empty(rows, heads, parts, value_width, device=query.device, dtype=torch.float32)
    _attend[(rows, kv_heads, parts)](
        query,
        keys,
        values,
        positions,
        sums,
        found,
        scale * _LOG2_E,
        window,
        share,
        *query.stride()[:2],
        *keys.stride()[:3],
        *values.stride()[:3],
        groups,
        key_width,
        value_width,
        GROUPS=max(16, triton.next_power_of_2(groups)),
        KEY=key,
        VALUE=value,
        BLOCK=block,
        ALONE=parts == 1,
        PRECISION="ieee" if query.dtype == torch.float32 else "tf32",
        num_stages=_STAGES,
    )
    if parts > 1:
        width = triton.next_power_of_2(value_width)
        _join[(rows * heads,)](
            sums, found, out, parts, value_width, PARTS=triton.next_power_of_2(parts), VALUE=width
        )


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    positions,
    sums,
    found,
    scale,
    window,
    share,
    query_row,
    query_head,
    key_row,
    key_head,
    key_place,
    value_row,
    value_head,
    value_place,
    groups,
    key_width,
    value_width,
    GROUPS: tl.constexpr,
    KEY: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK: tl.constexpr,
    ALONE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The heads of one row that share a key head, over one part of the places."""
    row, head, part, parts = tl.program_id(0), tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    end = tl.load(positions + row).to(tl.int32) + 1
    first = tl.maximum(end - window, 0) if window > 0 else 0
    begin, end = tl.maximum(part * share, first), tl.minimum((part + 1) * share, end)
    group, key_at, value_at = tl.arange(0, GROUPS), tl.arange(0, KEY), tl.arange(0, VALUE)
    heads = tl.num_programs(1) * groups
    mine = head * groups + group
    q = tl.load(
        query + row * query_row + mine[:, None] * query_head + key_at[None, :],
        mask=(group[:, None] < groups) & (key_at[None, :] < key_width),
        other=0.0,
    )
    key = keys + row.to(tl.int64) * key_row + head * key_head
    value = values + row.to(tl.int64) * value_row + head * value_head
    top = tl.full([GROUPS], float("-inf"), dtype=tl.float32)
    total = tl.zeros([GROUPS], dtype=tl.float32)
    out = tl.zeros([GROUPS, VALUE], dtype=tl.float32)
    for start in range(begin, end, BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < end
        k = tl.load(
            key + place[None, :].to(tl.int64) * key_place + key_at[:, None],
            mask=inside[None, :] & (key_at[:, None] < key_width),
            other=0.0,
        )
        scores = tl.where(inside[None, :], tl.dot(q, k, input_precision=PRECISION) * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        kept = tl.exp2(top - higher)
        v = tl.load(
            value + place[:, None].to(tl.int64) * value_place + value_at[None, :],
            mask=inside[:, None] & (value_at[None, :] < value_width),
            other=0.0,
        )
        total = total * kept + tl.sum(weights, axis=1)
        out = out * kept[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        top = higher
    inside = (group[:, None] < groups) & (value_at[None, :] < value_width)
    at = row * heads + mine
    if ALONE:
        target = found + at[:, None] * value_width + value_at[None, :]
        tl.store(target, (out / total[:, None]).to(found.dtype.element_ty), mask=inside)
    else:
        place = at * parts + part
        tl.store(found + place[:, None] * value_width + value_at[None, :], out, mask=inside)
        tl.store(sums + place * 2, top, mask=group < groups)
        tl.store(sums + place * 2 + 1, total, mask=group < groups)


@triton.jit
def _join(sums, found, out, parts, value_width, PARTS: tl.constexpr, VALUE: tl.constexpr):  # type: ignore[no-untyped-def]
    """One head of one row: the parts, each weighted by its share of the whole sum."""
    at = tl.program_id(0)
    part, value_at = tl.arange(0, PARTS), tl.arange(0, VALUE)
    place = at * parts + part
    top = tl.load(sums + place * 2, mask=part < parts, other=float("-inf"))
    share = tl.exp2(top - tl.max(top, axis=0))
    total = tl.sum(share * tl.load(sums + place * 2 + 1, mask=part < parts, other=0.0), axis=0)
    each = tl.load(
        found + place[:, None] * value_width + value_at[None, :],
        mask=(part[:, None] < parts) & (value_at[None, :] < value_width),
        other=0.0,
    )
    whole = tl.sum(each * share[:, None], axis=0) / total
    tl.store(out + at * value_width + value_at, whole.to(out.dtype.element_ty), mask=value_at < value_width)
