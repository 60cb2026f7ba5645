"""Frozen products in FP8 (e4m3, arXiv 2209.05433), for their speed: W with one scale for each of its rows,
what it is multiplied with one for each token.

W is held twice, as [out, in] for x·Wᵀ and as [in, out] for dY·W, since the hardware takes both factors along
what is summed over. It is the same numbers: in dY·W the scales of W's rows are inside the sum, and go into dY
before that is rounded. What adapters add stays in the base's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.lora.ops import factor_dtype, product, wide_product

FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8).max  # 448
_SMALLEST_SCALE = 1e-12  # for a row of zeros
CAPABILITY = (8, 9)  # Ada; 9.0 is Hopper


def quantised_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., n] as e4m3 [rows, n] and float32 scales [rows, 1], so that x ≈ scale·e4m3 and the largest of a
    row is 448.
    """
    wide = x.reshape(-1, x.shape[-1]).float()
    scale = (wide.abs().amax(-1, keepdim=True) / _LARGEST).clamp(min=_SMALLEST_SCALE)
    return (wide / scale).clamp(-_LARGEST, _LARGEST).to(FP8), scale


def packed_rows(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W [out, in] as e4m3, its scales [out], and the same e4m3 as [in, out]."""
    rows, scale = quantised_rows(weight)
    return rows, scale[:, 0].contiguous(), rows.t().contiguous()


def scaled_product(
    left: Tensor, left_scale: Tensor, right: Tensor, right_scale: Tensor, like: Tensor
) -> Tensor:
    """(left_scale·left)·(right_scale·right)ᵀ in the dtype of `like`: left [M, n], right [N, n], left_scale
    [M, 1], right_scale [N].
    """
    return torch._scaled_mm(
        left,
        right.t(),
        scale_a=left_scale,
        scale_b=right_scale[None],
        out_dtype=like.dtype,
        use_fast_accum=True,
    )


# x is rounded outside of the operators, so that a compiler does it in the kernel that makes x, and once for
# all layers that are given the same.


@torch.library.custom_op("lora_workbench::fp8_product", mutates_args=())
def fp8_product(
    x: Tensor, rounded: Tensor, scales: Tensor, packed: Sequence[Tensor], bias: Tensor | None
) -> Tensor:
    """x·Wᵀ + bias, [N, …, out], of x [N, …, in], what quantised_rows() makes of it, and packed_rows() of
    W.
    """
    rows, of_rows, _ = packed
    y = scaled_product(rounded, scales, rows, of_rows, x)
    if bias is not None:
        y += bias
    return y.view(*x.shape[:-1], rows.shape[0])


@fp8_product.register_fake
def _(x, rounded, scales, packed, bias):  # type: ignore[no-untyped-def]
    return x.new_empty(*x.shape[:-1], packed[0].shape[0])


def _keep(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, of_rows, columns = inputs[3]
    ctx.save_for_backward(of_rows, columns)


def _backward(ctx, dy):  # type: ignore[no-untyped-def]
    of_rows, columns = ctx.saved_tensors
    dx = fp8_product_backward(dy, *quantised_rows(dy * of_rows), columns)
    return dx, None, None, [None] * 3, None


@torch.library.custom_op("lora_workbench::fp8_product_backward", mutates_args=())
def fp8_product_backward(dy: Tensor, rounded: Tensor, scales: Tensor, columns: Tensor) -> Tensor:
    """dY·W of what quantised_rows() makes of dY·diag(scales of W's rows)."""
    ones = torch.ones(len(columns), device=dy.device)
    return scaled_product(rounded, scales, columns, ones, dy).view(*dy.shape[:-1], len(columns))


@fp8_product_backward.register_fake
def _(dy, rounded, scales, columns):  # type: ignore[no-untyped-def]
    return dy.new_empty(*dy.shape[:-1], columns.shape[0])


fp8_product.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("lora_workbench::fp8_linear", mutates_args=())
def fp8_linear(
    x: Tensor,
    rounded: Tensor,
    scales: Tensor,
    packed: Sequence[Tensor],
    bias: Tensor | None,
    A: Tensor | None,
    B: Tensor,
    work_A: Tensor,
    work_B: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """As lora_linear(), with the base's product in FP8; without A as lora_linear_frozen_a(). What adapters
    add is added to an output that comes rounded, as where a layer has a bias, and as in PEFT.
    """
    y = fp8_product(x, rounded, scales, packed, bias)
    S = product(x.reshape(len(work_A), -1, x.shape[-1]), work_A.transpose(1, 2)).mul_(scale[:, None, None])
    y.view(len(work_A), -1, y.shape[-1]).baddbmm_(S, work_B.transpose(1, 2))
    return y, S


@fp8_linear.register_fake
def _(x, rounded, scales, packed, bias, A, B, work_A, work_B, scale):  # type: ignore[no-untyped-def]
    tokens = x.numel() // x.shape[-1] // work_A.shape[0]
    y = x.new_empty(*x.shape[:-1], packed[0].shape[0])
    return y, x.new_empty(work_A.shape[0], tokens, work_A.shape[1])


def _keep_for_factors(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, _, _, packed, _, A, _, work_A, work_B, scale = inputs
    ctx.learns_a = A is not None
    ctx.save_for_backward(output[1], *packed[1:], work_A, work_B, scale, *([x] if ctx.learns_a else []))


def _backward_for_factors(ctx, dy, _dS):  # type: ignore[no-untyped-def]
    S, of_rows, columns, work_A, work_B, scale, *x = ctx.saved_tensors
    dy = dy.contiguous()
    given = (dy, *quantised_rows(dy * of_rows), columns, S, x[0] if x else None, work_A, work_B, scale)
    dx, dA, dB = fp8_linear_backward(*given)
    dx = dx if ctx.needs_input_grad[0] else None
    return dx, None, None, [None] * 3, None, dA if x else None, dB, None, None, None


@torch.library.custom_op("lora_workbench::fp8_linear_backward", mutates_args=())
def fp8_linear_backward(
    dy: Tensor,
    rounded: Tensor,
    scales: Tensor,
    columns: Tensor,
    S: Tensor,
    x: Tensor | None,
    work_A: Tensor,
    work_B: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for x, A (empty without x) and B."""
    adapters = len(work_A)
    grouped = dy.reshape(adapters, -1, dy.shape[-1])
    dS = product(grouped, work_B).mul_(scale[:, None, None])
    dx = fp8_product_backward(dy, rounded, scales, columns)
    dx.view(adapters, -1, dx.shape[-1]).baddbmm_(dS, work_A)
    dB = wide_product(grouped, S)
    dA = dB.new_empty(0) if x is None else wide_product(dS, x.reshape(adapters, -1, x.shape[-1]))
    return dx, dA, dB


@fp8_linear_backward.register_fake
def _(dy, rounded, scales, columns, S, x, work_A, work_B, scale):  # type: ignore[no-untyped-def]
    wide = factor_dtype(dy.dtype)
    dA = torch.empty_like(work_A, dtype=wide) if x is not None else work_A.new_empty(0, dtype=wide)
    return dy.new_empty(*dy.shape[:-1], columns.shape[0]), dA, torch.empty_like(work_B, dtype=wide)


fp8_linear.register_autograd(_backward_for_factors, setup_context=_keep_for_factors)
