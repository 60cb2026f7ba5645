"""DoRA on one layer for K adapters; the method is told in core/lora/kinds/dora.py.

The norm of the rows of W + s·B·A is worked out without a second matrix of W's size:

    ‖W + s·B·A‖² = ‖W‖² + 2s·rowsum((W·Aᵀ) ∘ B) + s²·rowsum((B·A·Aᵀ) ∘ B)

‖W‖² is taken once. Of an adapter that is not trained any more m / ‖W + s·B·A‖ is kept, from the numbers as
they were stored, so an answer costs what it costs with LoRA.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.lora.adapter import LayerWeights
from core.lora.beside import beside, without_bias
from core.lora.factors import LoraFactors
from core.lora.layer import plain_weight
from core.lora.ops import factor_dtype


class MagnitudeFactors(LoraFactors):
    """The stacked factors and lengths of K adapters for one linear layer."""

    m: Tensor
    squares: Tensor
    """‖W‖² of each row, [out], in factor_dtype()."""
    ratios: Tensor
    """m / ‖W + s·B·A‖ of each adapter that is not trained, [K, out]; 1 where it has no part."""

    @property
    def keeps_inputs(self) -> bool:
        """See AdapterStack.keeps_inputs."""
        return True

    def prepare(self, base: nn.Module) -> None:
        """See AdapterStack.prepare()."""
        weight = plain_weight(base)
        squares = row_norms(weight).square()
        self.register_buffer("squares", squares, persistent=False)
        self.register_buffer("ratios", squares.new_ones(self.scale.shape[0], len(squares)), persistent=False)

    @torch.no_grad()
    def placed(self, slot: int, layer: LayerWeights | None, base: nn.Module) -> None:
        """See AdapterStack.placed()."""
        if layer is None:
            self.ratios[slot] = 1.0
            return
        # Copied, since numbers that lie where a file was mapped may be summed in another order.
        own = {name: tensor[None].to(self.squares, copy=True) for name, tensor in layer.tensors.items()}
        scale = self.squares.new_tensor([layer.scale])
        self.ratios[slot] = _ratios(own["m"], plain_weight(base), self.squares, own["A"], own["B"], scale)[0]

    def linear(self, x: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """As any stack's. While it trains, LoRA's operator gives (W + s·B·A)·x, and its rows are rescaled."""
        if not self.B.requires_grad:
            y = base(x)
            return y + self.added(x, y, base, slots)
        if self.dropout is not None:
            y = without_bias(x, base)
            directed = y + self._delta(self.dropout(x) if self.training else x, None).view_as(y)
        else:
            work = self.work_A, self.work_B, self.scale
            directed = beside(x, base, None, self.A, self.B, *work)
        ratios = _ratios(self.m, plain_weight(base), self.squares, self.A, self.B, self.scale)
        y = rescaled(directed.reshape(ratios.shape[0], -1, ratios.shape[1]), ratios).view_as(directed)
        return y if base.bias is None else y + base.bias  # type: ignore[operator]

    def added(self, x: Tensor, y: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """(m/‖·‖ − 1)·W·x + m/‖·‖·s·B·A·x, where the base's output is y = W·x + bias."""
        ratios = (self.ratios if slots is None else self.ratios[slots])[:, None]
        plain = y if base.bias is None else y - base.bias  # type: ignore[operator]
        grouped = plain.reshape(ratios.shape[0], -1, y.shape[-1])
        delta = self._delta(x, slots)
        return ((ratios - 1) * grouped + ratios * delta).to(y.dtype).view_as(y)

    def _delta(self, x: Tensor, slots: Tensor | None) -> Tensor:
        """s·B·A·x of each adapter, [K, T, out]; differentiable."""
        if slots is None:
            A, B, scale = self.A.to(x.dtype), self.B.to(x.dtype), self.scale
        else:
            A, B, scale = self.work_A[slots], self.work_B[slots], self.scale[slots]
        low = x.reshape(A.shape[0], -1, x.shape[-1]).bmm(A.transpose(1, 2)) * scale[:, None, None].to(x.dtype)
        return low.bmm(B.transpose(1, 2))


def row_norms(weight: Tensor) -> Tensor:
    """‖W‖ of each row, [out], in factor_dtype()."""
    return torch.linalg.vector_norm(weight, dim=1, dtype=factor_dtype(weight.dtype))


def _ratios(m: Tensor, weight: Tensor, squares: Tensor, A: Tensor, B: Tensor, scale: Tensor) -> Tensor:
    """m / ‖W + s·B·A‖, [K, out]; the norm is a constant. 1 where an adapter has no part."""
    norms = directed_norms(weight, squares, A.detach(), B.detach(), scale)
    return torch.where(scale[:, None] == 0, torch.ones_like(m), m / norms)


@torch.library.custom_op("lora_workbench::directed_norms", mutates_args=())
def directed_norms(weight: Tensor, squares: Tensor, A: Tensor, B: Tensor, scale: Tensor) -> Tensor:
    """‖W + s·B·A‖ of each row, [K, out]: weight [out, in] in the base's dtype, squares [out] of its rows,
    A [K, r, in] and B [K, out, r] in factor_dtype(), scale [K].
    """
    adapters, rank, inputs = A.shape
    flat = A.reshape(-1, inputs).t()
    if weight.dtype == A.dtype:
        product = torch.mm(weight, flat)
    elif weight.is_cuda:
        product = torch.mm(weight, flat.to(weight.dtype), out_dtype=A.dtype)
    else:
        product = torch.mm(weight, flat.to(weight.dtype)).to(A.dtype)
    WA = product.view(-1, adapters, rank).transpose(0, 1)  # [K, out, r]
    s = scale.to(A.dtype)[:, None]
    crossed = (WA * B).sum(-1)
    own = (B.bmm(A.bmm(A.transpose(1, 2))) * B).sum(-1)
    return (squares + 2 * s * crossed + s * s * own).clamp(min=torch.finfo(A.dtype).tiny).sqrt().contiguous()


@directed_norms.register_fake
def _(weight, squares, A, B, scale):  # type: ignore[no-untyped-def]
    return squares.new_empty(A.shape[0], weight.shape[0])


def rescaled(y: Tensor, ratios: Tensor) -> Tensor:
    """y [K, T, out] with each output times its ratio [K, out], in y's dtype.

    The ratios stay in factor_dtype(): near 1, bfloat16 has steps of a hundredth. A compiled layer fuses the
    same with what stands around it.
    """
    if torch.compiler.is_compiling():
        return (y.to(ratios.dtype) * ratios[:, None]).to(y.dtype)
    return _rescaled(y, ratios)


@torch.library.custom_op("lora_workbench::rescaled", mutates_args=())
def _rescaled(y: Tensor, ratios: Tensor) -> Tensor:
    return torch.mul(y, ratios[:, None], out=torch.empty_like(y))


@_rescaled.register_fake
def _(y, ratios):  # type: ignore[no-untyped-def]
    return torch.empty_like(y)


def _keep(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _backward(ctx, dy):  # type: ignore[no-untyped-def]
    y, ratios = ctx.saved_tensors
    return _rescaled(dy.contiguous(), ratios), (dy.to(ratios.dtype) * y).sum(1)


_rescaled.register_autograd(_backward, setup_context=_keep)
