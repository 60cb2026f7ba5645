"""LoRA's operators beside a quantised weight: those of core/lora/ops.py, which keep the weight as it is held
for backward and make it anew there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.lora.ops import factor_dtype, lora_linear_backward, lora_linear_frozen_a_backward, with_delta
from core.lora.quantised import dequantised


@torch.library.custom_op("lora_workbench::quantised_linear", mutates_args=())
def quantised_linear(
    x: Tensor,
    packed: Sequence[Tensor],
    how: str,
    outputs: int,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    work_A: Tensor,
    work_B: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """As lora_linear(), with `packed`, `how` and `outputs` of a Packed in the place of the weight."""
    weight = dequantised(packed, how, outputs, x.shape[-1], x.dtype)
    return with_delta(x, weight, bias, work_A, work_B, scale)


@quantised_linear.register_fake
def _(x, packed, how, outputs, bias, A, B, work_A, work_B, scale):  # type: ignore[no-untyped-def]
    tokens = x.numel() // x.shape[-1] // A.shape[0]
    return x.new_empty(*x.shape[:-1], outputs), x.new_empty(A.shape[0], tokens, A.shape[1])


def _keep(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, packed, ctx.how, _outputs, _bias, _A, _B, work_A, work_B, scale = inputs
    ctx.save_for_backward(x, output[1], work_A, work_B, scale, *packed)


def _backward(ctx, dy, _dS):  # type: ignore[no-untyped-def]
    x, S, work_A, work_B, scale, *packed = ctx.saved_tensors
    dx, dA, dB = quantised_linear_backward(dy.contiguous(), x, S, packed, ctx.how, work_A, work_B, scale)
    dx = dx if ctx.needs_input_grad[0] else None
    return dx, [None] * len(packed), None, None, None, dA, dB, None, None, None


@torch.library.custom_op("lora_workbench::quantised_linear_backward", mutates_args=())
def quantised_linear_backward(
    dy: Tensor,
    x: Tensor,
    S: Tensor,
    packed: Sequence[Tensor],
    how: str,
    work_A: Tensor,
    work_B: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """As lora_linear_backward()."""
    weight = dequantised(packed, how, dy.shape[-1], x.shape[-1], x.dtype)
    return lora_linear_backward(dy, x, S, weight, work_A, work_B, scale)


@quantised_linear_backward.register_fake
def _(dy, x, S, packed, how, work_A, work_B, scale):  # type: ignore[no-untyped-def]
    wide = factor_dtype(x.dtype)
    return torch.empty_like(x), torch.empty_like(work_A, dtype=wide), torch.empty_like(work_B, dtype=wide)


quantised_linear.register_autograd(_backward, setup_context=_keep)


@torch.library.custom_op("lora_workbench::quantised_linear_frozen_a", mutates_args=())
def quantised_linear_frozen_a(
    x: Tensor,
    packed: Sequence[Tensor],
    how: str,
    outputs: int,
    bias: Tensor | None,
    B: Tensor,
    work_A: Tensor,
    work_B: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """As lora_linear_frozen_a(), with a Packed's parts in the place of the weight."""
    weight = dequantised(packed, how, outputs, x.shape[-1], x.dtype)
    return with_delta(x, weight, bias, work_A, work_B, scale)


@quantised_linear_frozen_a.register_fake
def _(x, packed, how, outputs, bias, B, work_A, work_B, scale):  # type: ignore[no-untyped-def]
    tokens = x.numel() // x.shape[-1] // work_A.shape[0]
    return x.new_empty(*x.shape[:-1], outputs), x.new_empty(work_A.shape[0], tokens, work_A.shape[1])


def _keep_without_x(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, packed, ctx.how, _outputs, _bias, _B, work_A, work_B, scale = inputs
    ctx.inputs = x.shape[-1]
    ctx.save_for_backward(output[1], work_A, work_B, scale, *packed)


def _backward_without_x(ctx, dy, _dS):  # type: ignore[no-untyped-def]
    S, work_A, work_B, scale, *packed = ctx.saved_tensors
    given = (S, packed, ctx.how, ctx.inputs, work_A, work_B, scale)
    dx, dB = quantised_linear_frozen_a_backward(dy.contiguous(), *given)
    dx = dx if ctx.needs_input_grad[0] else None
    return dx, [None] * len(packed), None, None, None, dB, None, None, None


@torch.library.custom_op("lora_workbench::quantised_linear_frozen_a_backward", mutates_args=())
def quantised_linear_frozen_a_backward(
    dy: Tensor,
    S: Tensor,
    packed: Sequence[Tensor],
    how: str,
    inputs: int,
    work_A: Tensor,
    work_B: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """As lora_linear_frozen_a_backward()."""
    weight = dequantised(packed, how, dy.shape[-1], inputs, dy.dtype)
    return lora_linear_frozen_a_backward(dy, S, weight, work_A, work_B, scale)


@quantised_linear_frozen_a_backward.register_fake
def _(dy, S, packed, how, inputs, work_A, work_B, scale):  # type: ignore[no-untyped-def]
    dx = dy.new_empty(*dy.shape[:-1], inputs)
    return dx, torch.empty_like(work_B, dtype=factor_dtype(dy.dtype))


quantised_linear_frozen_a.register_autograd(_backward_without_x, setup_context=_keep_without_x)
