"""The arithmetic of a LoRA layer as operators that autograd, torch.compile and CUDA graphs take as they are.

Forward and backward of one frozen linear layer with K adapters. Written as whole operators, since that keeps
the adapters' products inside the output of the base's (one addition in place instead of two passes over it),
and since backward then needs x and the small S = x·Aᵀ only, both of which a partitioner may recompute.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from core.lora.tiles import tiles_of

# What the kernels of core/lora/kernels.py take as one: so many layers, of multiples of so many outputs.
MOST_JOINT, JOINT_OUTPUTS = 4, 64


def factor_dtype(computing: torch.dtype) -> torch.dtype:
    """What factors are kept and trained in beside a base that computes in `computing`: float32, or wider if
    that is.
    """
    return torch.promote_types(computing, torch.float32)


@torch.library.custom_op("lora_workbench::linear", mutates_args=())
def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    work_A: Tensor,
    work_B: Tensor,
    scale: Tensor,
) -> tuple[Tensor, Tensor]:
    """y = x·Wᵀ + bias + scale·(x·Aᵀ)·Bᵀ, and S = scale·x·Aᵀ for backward (arXiv 2106.09685, equation 3).

    x [N, …, in] holds N/K consecutive rows of each adapter; weight [out, in]; A [K, r, in] and B [K, out, r]
    are the factors in factor_dtype() that receive gradients, work_A and work_B the same in x's dtype; scale
    [K]. y [N, …, out], S [K, T, r].
    """
    return with_delta(x, weight, bias, work_A, work_B, scale)


def with_delta(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The same for factors in x's dtype, without a thought for gradients.

    The base's product is added to the adapters' part, not the other way round: so it is summed in float32 and
    rounded once. Added to an output that is rounded already, a young adapter's part is less than half of
    bfloat16's last digit and would be rounded away whole, every time.
    """
    adapters, outputs = A.shape[0], weight.shape[0]
    grouped = x.reshape(adapters, -1, x.shape[-1])
    S = product(grouped, A.transpose(1, 2)).mul_(scale[:, None, None])
    if bias is None:
        y = product(S, B.transpose(1, 2)).view(-1, outputs).addmm_(x.reshape(-1, x.shape[-1]), weight.t())
    else:  # with a bias the base's output comes rounded
        y = F.linear(x, weight, bias)
        y.view(adapters, -1, outputs).baddbmm_(S, B.transpose(1, 2))
    return y.view(*x.shape[:-1], outputs), S


def product(left: Tensor, right: Tensor) -> Tensor:
    """A batched product; for a batch of one the plain product is quicker."""
    return torch.mm(left[0], right[0])[None] if left.shape[0] == 1 else torch.bmm(left, right)


@lora_linear.register_fake
def _(x, weight, bias, A, B, work_A, work_B, scale):  # type: ignore[no-untyped-def]
    tokens = x.numel() // x.shape[-1] // A.shape[0]
    return x.new_empty(*x.shape[:-1], weight.shape[0]), x.new_empty(A.shape[0], tokens, A.shape[1])


@torch.library.custom_op("lora_workbench::linear_backward", mutates_args=())
def lora_linear_backward(
    dy: Tensor, x: Tensor, S: Tensor, weight: Tensor, work_A: Tensor, work_B: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients for x, A and B; those of the factors in factor_dtype(). The frozen weight gets none."""
    adapters = work_A.shape[0]
    grouped_dy, grouped_x = dy.reshape(adapters, -1, dy.shape[-1]), x.reshape(adapters, -1, x.shape[-1])
    dS = product(grouped_dy, work_B).mul_(scale[:, None, None])
    dx = product(dS, work_A).view(-1, x.shape[-1]).addmm_(dy.reshape(-1, dy.shape[-1]), weight)
    return dx.view(x.shape), wide_product(dS, grouped_x), wide_product(grouped_dy, S)


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ·right for each adapter, summed over tokens, in factor_dtype()."""
    if left.dtype == factor_dtype(left.dtype):
        return torch.bmm(left.transpose(1, 2), right)
    if left.is_cuda:  # accumulated in float32 anyway; this keeps it from being rounded on the way out
        return torch.bmm(left.transpose(1, 2), right, out_dtype=torch.float32)
    return torch.bmm(left.transpose(1, 2), right).float()


@lora_linear_backward.register_fake
def _(dy, x, S, weight, work_A, work_B, scale):  # type: ignore[no-untyped-def]
    return (
        torch.empty_like(x),
        work_A.new_empty(work_A.shape, dtype=factor_dtype(x.dtype)),
        work_B.new_empty(work_B.shape, dtype=factor_dtype(x.dtype)),
    )


def _keep(ctx, inputs, output):  # type: ignore[no-untyped-def]
    x, weight, _bias, _A, _B, work_A, work_B, scale = inputs
    ctx.save_for_backward(x, output[1], weight, work_A, work_B, scale)


def _backward(ctx, dy, _dS):  # type: ignore[no-untyped-def]
    x, S, weight, work_A, work_B, scale = ctx.saved_tensors
    dx, dA, dB = lora_linear_backward(dy.contiguous(), x, S, weight, work_A, work_B, scale)
    return dx if ctx.needs_input_grad[0] else None, None, None, dA, dB, None, None, None


lora_linear.register_autograd(_backward, setup_context=_keep)


# The same where A is not trained: backward needs neither x nor A's gradient (LoRA-FA, arXiv 2308.03303).


@torch.library.custom_op("lora_workbench::linear_frozen_a", mutates_args=())
def lora_linear_frozen_a(
    x: Tensor, weight: Tensor, bias: Tensor | None, B: Tensor, work_A: Tensor, work_B: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """As lora_linear(), with a gradient for B alone of the two factors."""
    return with_delta(x, weight, bias, work_A, work_B, scale)


@lora_linear_frozen_a.register_fake
def _(x, weight, bias, B, work_A, work_B, scale):  # type: ignore[no-untyped-def]
    tokens = x.numel() // x.shape[-1] // work_A.shape[0]
    return x.new_empty(*x.shape[:-1], weight.shape[0]), x.new_empty(work_A.shape[0], tokens, work_A.shape[1])


@torch.library.custom_op("lora_workbench::linear_frozen_a_backward", mutates_args=())
def lora_linear_frozen_a_backward(
    dy: Tensor, S: Tensor, weight: Tensor, work_A: Tensor, work_B: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients for x and B."""
    adapters = work_A.shape[0]
    grouped_dy = dy.reshape(adapters, -1, dy.shape[-1])
    dS = product(grouped_dy, work_B).mul_(scale[:, None, None])
    dx = product(dS, work_A).view(-1, weight.shape[1]).addmm_(dy.reshape(-1, dy.shape[-1]), weight)
    return dx.view(*dy.shape[:-1], weight.shape[1]), wide_product(grouped_dy, S)


@lora_linear_frozen_a_backward.register_fake
def _(dy, S, weight, work_A, work_B, scale):  # type: ignore[no-untyped-def]
    dx = dy.new_empty(*dy.shape[:-1], weight.shape[1])
    return dx, work_B.new_empty(work_B.shape, dtype=factor_dtype(dy.dtype))


def _keep_without_x(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _x, weight, _bias, _B, work_A, work_B, scale = inputs
    ctx.save_for_backward(output[1], weight, work_A, work_B, scale)


def _backward_without_x(ctx, dy, _dS):  # type: ignore[no-untyped-def]
    S, weight, work_A, work_B, scale = ctx.saved_tensors
    dx, dB = lora_linear_frozen_a_backward(dy.contiguous(), S, weight, work_A, work_B, scale)
    return dx if ctx.needs_input_grad[0] else None, None, None, dB, None, None, None


lora_linear_frozen_a.register_autograd(_backward_without_x, setup_context=_keep_without_x)


def adapted(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: Tensor,
    slots: Tensor,
    outputs: Sequence[int],
) -> list[Tensor]:
    """y [R, …, out] of x [R, …, in] on CUDA for each layer, row i with adapter slots[i]; see
    lora_linear_one_token().
    """
    tokens = x.reshape(slots.shape[0], -1, x.shape[-1])
    given = weight, bias, A, B, scale, slots, outputs
    if tokens.shape[1] > 1:
        found = lora_linear_chosen(tokens, *given)
    else:
        plain, delta = lora_linear_one_token(tokens[:, 0], *given)
        found = list((plain + delta).split(list(outputs), dim=-1))
    return [y.view(*x.shape[:-1], y.shape[-1]) for y in found]


@torch.library.custom_op("lora_workbench::linear_one_token", mutates_args=())
def lora_linear_one_token(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: Tensor,
    slots: Tensor,
    outputs: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """One new token for each row of x [R, in], row i with adapter slots[i]: the base's output and the
    adapters' delta, [R, out] each.

    outputs: of each of P layers whose weights lie behind each other in weight [out, in], and so do their
    factors A [K, P·r, in] and B [K, out, r]; scale [P, K].

    Decoding reads the whole weight for a few rows, so the adapters' two small kernels run beside it on a
    stream of their own, and the sum is left to the caller, where a compiler folds it into whatever comes
    next.
    """
    # they need Triton, which only CUDA builds of torch bring
    from core.lora.kernels import gathered_delta, one_token_delta

    main, side = torch.cuda.current_stream(x.device), _side_stream(x.device.index)
    S = torch.empty(x.shape[0], A.shape[1], device=x.device, dtype=torch.float32)
    delta = torch.empty(x.shape[0], weight.shape[0], device=x.device, dtype=x.dtype)
    tiles = tiles_of(slots)
    side.wait_stream(main)
    with torch.cuda.stream(side):
        if tiles is None:
            one_token_delta(x, A, B, scale, slots, outputs, S, delta)
        else:
            gathered_delta(x, A, B, scale, tiles, outputs, delta)
    y = F.linear(x, weight, bias)
    main.wait_stream(side)
    return y, delta


@lora_linear_one_token.register_fake
def _(x, weight, bias, A, B, scale, slots, outputs):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape[0], weight.shape[0]), x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("lora_workbench::linear_chosen", mutates_args=())
def lora_linear_chosen(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: Tensor,
    slots: Tensor,
    outputs: Sequence[int],
) -> list[Tensor]:
    """The same for several tokens of each row, x [R, T, in]: for each layer y [R, T, out], with the adapters'
    part in it.
    """
    from core.lora.kernels import chosen_delta

    flat = x.reshape(-1, x.shape[-1])
    found = [x.new_empty(*x.shape[:2], width) for width in outputs]
    chosen_delta(x.contiguous(), A, B, scale, slots, outputs, found)
    sizes = list(outputs)
    biases = [None] * len(sizes) if bias is None else bias.split(sizes)
    for y, part, own in zip(found, weight.split(sizes), biases, strict=True):
        if own is not None:
            y += own
        y.view(-1, y.shape[-1]).addmm_(flat, part.t())
    return found


@lora_linear_chosen.register_fake
def _(x, weight, bias, A, B, scale, slots, outputs):  # type: ignore[no-untyped-def]
    return [x.new_empty(*x.shape[:2], width) for width in outputs]


@functools.cache
def _side_stream(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # before the base's product, which fills the device
