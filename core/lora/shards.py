"""MiSS on one layer for K adapters; the method is told in core/lora/kinds/miss.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.lora.beside import beside_frozen_a
from core.lora.stack import AdapterStack


class ShardFactors(AdapterStack):
    """The blocks of K adapters for one linear layer, while they are trained: they answer as LoRA.

    The matrix that folds the inputs is made anew in each pass: it is small beside the tokens, and kept it
    would take a third of the adapter's memory.
    """

    D: Tensor
    work_D: Tensor
    fold: Tensor

    @property
    def keeps_inputs(self) -> bool:
        """See AdapterStack.keeps_inputs."""
        return self.dropout is not None

    def linear(self, x: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """As any stack's, in all slots, with the adapters' products inside the base's output."""
        if self.dropout is not None and self.training:
            return super().linear(x, base, slots)
        A, work_B = folding(self.fold, self.D.shape[1], x.dtype), self.work_D.transpose(1, 2)
        bias: Tensor | None = base.bias  # type: ignore[assignment]
        return beside_frozen_a(x, base, bias, self.D.transpose(1, 2), A, work_B, self.scale)

    def added(self, x: Tensor, y: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """D·fold(x), by ordinary differentiation."""
        if self.dropout is not None and self.training:
            x = self.dropout(x)
        A, D = folding(self.fold, self.D.shape[1], x.dtype), self.D.to(x.dtype)
        folded = x.reshape(len(D), -1, x.shape[-1]).bmm(A.transpose(1, 2))
        return (folded * self.scale[:, None, None].to(x.dtype)).bmm(D).reshape(y.shape)


def folding(fold: Tensor, rank: int, dtype: torch.dtype) -> Tensor:
    """The fixed A of each adapter, [K, r, in]: 1 where fold [K, in] says that an input goes there."""
    rows = torch.arange(rank, device=fold.device, dtype=fold.dtype)
    return (fold[:, None, :] == rows[None, :, None]).to(dtype)
