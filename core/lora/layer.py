"""Low-rank adaptation of one linear layer, for K adapters on one frozen weight.

            x ──────────────► W (frozen) ────────────► + ──► y
            │                                          ▲
            └──► A[k] (r×in) ──► B[k] (out×r) ──► · s[k]         y = W·x + s·B·A·x,  s = α/r

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, equation 3. A starts
Kaiming-uniform with a = √5 and B at zero, as in the authors' loralib, so ΔW = s·B·A is exactly zero before the first
step. The forward pass never changes W.

The factors of K adapters are stacked, A[K, r_max, in] and B[K, out, r_max]; an adapter of lower rank is padded with
zero rows, which add nothing. A batch holds the same number of rows for each adapter in use, in order, so that the
adapter path is two batched products, whatever K is.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class LoraFactors(nn.Module):
    """The stacked factors of K adapters for one linear layer, and each adapter's scale."""

    scale: Tensor

    def __init__(
        self, slots: int, rank: int, in_features: int, out_features: int, *,
        dropout: float = 0.0, device: torch.device | None = None, dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        super().__init__()
        self.A = nn.Parameter(torch.zeros(slots, rank, in_features, device=device, dtype=dtype))
        self.B = nn.Parameter(torch.zeros(slots, out_features, rank, device=device, dtype=dtype))
        self.register_buffer("scale", torch.zeros(slots, device=device, dtype=torch.float32))
        self.dropout = dropout

    @torch.no_grad()
    def initialise(self, slot: int, rank: int, scale: float, generator: torch.Generator) -> None:
        """Start a new adapter in `slot`: A Kaiming-uniform, drawn on the CPU so every device gets the same, B zero."""
        fresh = torch.empty(rank, self.A.shape[2])
        nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
        self.load(slot, fresh, torch.zeros(self.B.shape[1], rank), scale)

    @torch.no_grad()
    def load(self, slot: int, A: Tensor, B: Tensor, scale: float) -> None:
        """Copy an adapter's A [r, in] and B [out, r] into `slot`, padded with zeros to the stack's rank."""
        self.clear(slot)
        self.A[slot, : A.shape[0]].copy_(A)
        self.B[slot, :, : B.shape[1]].copy_(B)
        self.scale[slot] = scale

    @torch.no_grad()
    def clear(self, slot: int) -> None:
        """Make `slot` the plain base again."""
        self.A[slot].zero_()
        self.B[slot].zero_()
        self.scale[slot] = 0.0

    def delta(self, x: Tensor, slots: Tensor | None) -> Tensor:
        """What the adapters add to the layer's output.

        x [N, …, in] holds N / len(slots) consecutive rows for each entry of `slots`; None means all slots in order.
        The factors are cast to x's dtype, so float32 factors train under a bf16 base. Returns [N, …, out].
        """
        A, B, scale = (self.A, self.B, self.scale) if slots is None else (self.A[slots], self.B[slots], self.scale[slots])
        grouped = x.reshape(A.shape[0], -1, x.shape[-1])  # [K, T, in]
        if self.dropout and self.training:
            grouped = F.dropout(grouped, self.dropout)
        low = torch.bmm(grouped, A.to(x.dtype).transpose(1, 2)) * scale.to(x.dtype)[:, None, None]  # [K, T, r]
        return torch.bmm(low, B.to(x.dtype).transpose(1, 2)).reshape(*x.shape[:-1], B.shape[1])


class LoraLinear(nn.Module):
    """A frozen linear layer and the factors in use on it. Without factors it computes exactly what the base does."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = linear_shape(base)
        self.factors: LoraFactors | None = None
        self.slots: Tensor | None = None
        for parameter in base.parameters():
            parameter.requires_grad_(False)

    @property
    def weight(self) -> Tensor:
        """The frozen weight as the base stores it; some model code looks at its dtype."""
        return self.base.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias, if the layer has one."""
        return self.base.bias  # type: ignore[return-value]

    @property
    def transposed(self) -> bool:
        """Whether the base stores W as [in, out] (GPT-2's Conv1D)."""
        return isinstance(self.base, Conv1D)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return y if self.factors is None else y + self.factors.delta(x, self.slots)


def is_linear(module: nn.Module) -> bool:
    """Whether LoRA can be applied to `module`."""
    return isinstance(module, (nn.Linear, Conv1D))


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a linear layer, Conv1D included."""
    rows, columns = module.weight.shape  # type: ignore[misc]
    return (int(rows), int(columns)) if isinstance(module, Conv1D) else (int(columns), int(rows))
