"""A Triton kernel that makes a weight in NF4 dense: bitsandbytes' numbers to the last bit, in one pass.

Its own way takes three, of which the largest reaches less than half of an H200's bandwidth.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

_WORD = 8  # numbers in 32 bits
_WORDS, _WARPS = 1024, 4  # that a program reads, and with how many warps
# The 16 numbers that NF4 knows (arXiv 2305.14314, appendix E).
_NUMBERS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def takes(numbers: Tensor, shape: tuple[int, int]) -> bool:
    """Whether made_dense() takes a weight of this shape [out, in], whose numbers lie in these bytes."""
    return not shape[0] * shape[1] % _WORD and not numbers.data_ptr() % torch.int32.itemsize


def made_dense(
    numbers: Tensor,
    scales: Tensor,
    nested: Tensor,
    code: Tensor,
    mean: Tensor,
    block: int,
    nested_block: int,
    made: Tensor,
) -> None:
    """Write W to `made` [out, in], contiguous. numbers: two of W in each byte, the first in the upper half;
    scales [out·in / block] uint8: where in code [256] the scale of each block of W stands, to be multiplied
    by nested [scales / nested_block] and added to mean [1]; both float32.
    """
    words = made.numel() // _WORD
    _dense[(triton.cdiv(words, _WORDS),)](
        numbers.view(-1).view(torch.int32),
        scales,
        nested,
        code,
        mean,
        _numbers(made.device),
        made,
        words,
        EACH=block // _WORD,
        NESTED=nested_block,
        WORDS=_WORDS,
        num_warps=_WARPS,
        enable_fp_fusion=False,  # the scale is rounded before the mean is added to it, as bitsandbytes does
    )


@functools.cache
def _numbers(device: torch.device) -> Tensor:
    return torch.tensor(_NUMBERS, device=device)


@triton.jit
def _dense(  # type: ignore[no-untyped-def]
    numbers,
    scales,
    nested,
    code,
    mean,
    known,
    made,
    words,
    EACH: tl.constexpr,
    NESTED: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Eight numbers of W for each of WORDS words; EACH: words that share a scale."""
    word = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    there = word < words
    block = word // EACH
    step = tl.load(code + tl.load(scales + block, mask=there, other=0).to(tl.int32))
    scale = step * tl.load(nested + block // NESTED, mask=there, other=0.0) + tl.load(mean)
    place = tl.arange(0, 8)
    # bytes come from the lower end of a word, and of each byte the upper half first
    shift = place // 2 * 8 + (1 - place % 2) * 4
    which = tl.load(numbers + word, mask=there, other=0)[:, None] >> shift[None, :] & 15
    value = tl.load(known + which) * scale[:, None]
    at = word.to(tl.int64)[:, None] * 8 + place[None, :]
    tl.store(made + at, value.to(made.dtype.element_ty), mask=there[:, None])
