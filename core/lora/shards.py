"""MiSS on one layer for K adapters; the method is told in core/lora/kinds/miss.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.lora.layer import plain_weight
from core.lora.ops import lora_linear_frozen_a
from core.lora.stack import AdapterStack


class ShardFactors(AdapterStack):
    """The blocks of K adapters for one linear layer, while they are trained: they answer as LoRA.

    The matrix that folds the inputs is made anew in each pass: it is small beside the tokens, and kept it
    would take a third of the adapter's memory.
    """

    D: Tensor
    work_D: Tensor
    fold: Tensor

    def linear(self, x: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """As any stack's, with the adapters' products inside the base's output."""
        if slots is not None or (self.dropout is not None and self.training):
            return super().linear(x, base, slots)
        A, work_B = folding(self.fold, self.D.shape[1], x.dtype), self.work_D.transpose(1, 2)
        weight, B = plain_weight(base), self.D.transpose(1, 2)
        y, _ = lora_linear_frozen_a(x, weight, base.bias, B, A, work_B, self.scale)
        return y

    def added(self, x: Tensor, y: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """D·fold(x), by ordinary differentiation."""
        fold, D, scale = self.fold, self.D.to(x.dtype), self.scale.to(x.dtype)
        if slots is not None:
            fold, D, scale = fold[slots], self.work_D[slots], scale[slots]
        elif self.dropout is not None and self.training:
            x = self.dropout(x)
        folded = x.reshape(len(D), -1, x.shape[-1]).bmm(folding(fold, D.shape[1], x.dtype).transpose(1, 2))
        return (folded * scale[:, None, None]).bmm(D).reshape(y.shape)


def folding(fold: Tensor, rank: int, dtype: torch.dtype) -> Tensor:
    """The fixed A of each adapter, [K, r, in]: 1 where fold [K, in] says that an input goes there."""
    rows = torch.arange(rank, device=fold.device, dtype=fold.dtype)
    return (fold[:, None, :] == rows[None, :, None]).to(dtype)
