"""PiSSA and OLoRA on one layer for K adapters, while they train; see core/lora/kinds/_from_weight.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.lora.beside import beside
from core.lora.factors import LoraFactors


class FromStartFactors(LoraFactors):
    """The stacked factors of K adapters for one linear layer, and how they started."""

    A0: Tensor
    B0: Tensor

    def linear(self, x: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """As any stack's, in all slots."""
        if self.dropout is not None and self.training:
            return super().linear(x, base, slots)
        A, B = both_halves(self.A, self.B, self.A0, self.B0)
        work_A, work_B = A.detach().to(x.dtype), B.detach().to(x.dtype)
        return beside(x, base, base.bias, A, B, work_A, work_B, self.scale)  # type: ignore[arg-type]


def both_halves(A: Tensor, B: Tensor, A0: Tensor, B0: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of (B − B₀)·A + B₀·(A − A₀): [K, 2r, in] and [K, out, 2r]. A [K, r, in], B [K, out, r]."""
    return torch.cat([A, A - A0], dim=1), torch.cat([B - B0, B0], dim=2)
