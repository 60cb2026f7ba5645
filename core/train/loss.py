"""Causal language-model loss over chosen positions, without ever holding the logits of a whole batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.data.rendering import IGNORE


def token_losses(
    head: nn.Module, hidden: Tensor, targets: Tensor, weights: Tensor, runs: int = 1
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of head(hidden) against targets, in nats.

    hidden [N, H] holds N/runs consecutive rows of each adapter, targets [N] (IGNORE for none), weights [N]:
    what each position counts in the sum that is differentiated. Returns that weighted sum, and the plain
    losses [N] without a gradient. With a frozen head the gradient for `hidden` is computed on the way
    forward, chunk by chunk, so that no logits are kept or computed twice (the idea of the fused linear
    cross-entropy of Liger Kernel, arXiv 2410.10989, section 3.2).
    """
    weight, chunk = getattr(head, "weight", None), _chunk(hidden, head)
    if (
        isinstance(weight, Tensor)
        and not weight.requires_grad
        and getattr(head, "factors", None) is None
        and isinstance(_inner(head), nn.Linear)
    ):
        return _FrozenHead.apply(hidden, weight, head.bias, targets, weights, chunk)
    return _differentiated(head, hidden, targets, weights, max(1, chunk // runs), runs)


def _chunk(hidden: Tensor, head: nn.Module) -> int:
    """How many positions have logits at one time: half a GiB of them on an accelerator, what stays near the
    core on a CPU.
    """
    vocabulary = int(getattr(head, "out_features", hidden.shape[-1]))
    positions = (1 << 29 if hidden.is_cuda else 1 << 23) // (4 * vocabulary)
    return max(16, 1 << (positions.bit_length() - 1)) if positions else 16


def _inner(head: nn.Module) -> nn.Module:
    return getattr(head, "base", head)


class _FrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        losses = torch.empty(hidden.shape[0], device=hidden.device, dtype=_wide(hidden.dtype))
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            logits = F.linear(hidden[part], weight, bias)
            losses[part], by_logits = _compilable(hidden.device)(
                logits, targets[part], weights[part], gradient is not None
            )
            if gradient is not None:
                torch.mm(by_logits, weight, out=gradient[part])
        ctx.gradient = gradient
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, by_sum: Tensor, by_losses: Tensor) -> tuple[Tensor | None, ...]:
        gradient = ctx.gradient
        ctx.gradient = None
        return gradient.mul_(by_sum), None, None, None, None, None


def chunk_loss(
    logits: Tensor, targets: Tensor, weights: Tensor, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Losses [N] of logits [N, V], and d(Σ weights·losses)/d(logits) in the logits' dtype (empty if not asked
    for).
    """
    wide = logits.to(_wide(logits.dtype))
    total = torch.logsumexp(wide, dim=-1)
    counted = targets != IGNORE
    chosen = torch.where(counted, targets, 0)[:, None]
    losses = torch.where(counted, total - wide.gather(1, chosen)[:, 0], 0.0)
    if not with_gradient:
        return losses, logits[:0]
    factor = torch.where(counted, weights, 0.0)[:, None].to(wide.dtype)
    if (
        not torch.compiler.is_compiling()
    ):  # one buffer, since a pass over the logits costs as much as their product
        gradient = wide.sub_(total[:, None]).exp_().mul_(factor)
        return losses, gradient.scatter_add_(1, chosen, -factor).to(logits.dtype)
    gradient = torch.exp(wide - total[:, None]) * factor
    at = torch.arange(logits.shape[-1], device=logits.device) == chosen
    return losses, torch.where(at, gradient - factor, gradient).to(logits.dtype)


@functools.cache
def _compilable(device: torch.device) -> Callable[..., tuple[Tensor, Tensor]]:
    """On CUDA the dozen passes over the logits become two, where the step is compiled."""
    return torch.compile(chunk_loss, dynamic=False) if device.type == "cuda" else chunk_loss


def _differentiated(
    head: nn.Module, hidden: Tensor, targets: Tensor, weights: Tensor, chunk: int, runs: int
) -> tuple[Tensor, Tensor]:
    """The same where the head itself is trained or does more than a product;
    its logits are computed twice. Each chunk holds as many positions of every adapter, in order.
    """
    by_run, own = hidden.view(runs, -1, hidden.shape[-1]), targets.view(runs, -1)
    parts = [
        checkpoint(
            _plain_losses, head, by_run[:, at : at + chunk], own[:, at : at + chunk], use_reentrant=False
        )
        for at in range(0, by_run.shape[1], chunk)
    ]
    losses = torch.cat(parts, dim=1).flatten()
    return (losses * weights).sum(), losses.detach()


def _plain_losses(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """Of hidden [K, C, H] and targets [K, C], [K, C]."""
    logits = head(hidden).flatten(0, 1)
    losses = F.cross_entropy(
        logits.to(_wide(logits.dtype)), targets.flatten(), ignore_index=IGNORE, reduction="none"
    )
    return losses.view(targets.shape)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What losses are computed in: float32, or wider if the logits are."""
    return torch.promote_types(dtype, torch.float32)
