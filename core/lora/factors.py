"""LoRA on one layer for K adapters, the quickest way; the method is told in core/lora/kinds/lora.py.

The factors of K adapters are stacked, A[K, r_max, in] and B[K, out, r_max]. A batch holds the same number of
rows for each adapter in use, in order, so that the adapter path is two batched products, whatever K is.
"""

from __future__ import annotations

from torch import Tensor, nn

from core.lora.beside import beside, beside_frozen_a
from core.lora.layer import plain_weight
from core.lora.ops import adapted, with_delta
from core.lora.quantised import FP8
from core.lora.stack import AdapterStack


class LoraFactors(AdapterStack):
    """The stacked factors of K adapters for one linear layer."""

    A: Tensor
    B: Tensor
    work_A: Tensor
    work_B: Tensor

    @property
    def keeps_inputs(self) -> bool:
        """See AdapterStack.keeps_inputs."""
        return self.A.requires_grad or self.dropout is not None

    def linear(self, x: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """As any stack's, with the adapters' products inside the base's output."""
        bias: Tensor | None = base.bias  # type: ignore[assignment]
        if slots is not None and getattr(base, "how", "") == FP8:
            return super().linear(x, base, slots)  # the base's product rounds x, alone and in company
        if slots is not None:
            return self._chosen(x, plain_weight(base), bias, slots)
        if self.dropout is not None and self.training:
            return super().linear(x, base, slots)
        work = self.work_A, self.work_B, self.scale
        if self.A.requires_grad or not self.B.requires_grad:
            return beside(x, base, bias, self.A, self.B, *work)
        return beside_frozen_a(x, base, bias, self.B, *work)

    def _chosen(self, x: Tensor, weight: Tensor, bias: Tensor | None, slots: Tensor) -> Tensor:
        """Inference with a choice of slots."""
        own = self.work_A, self.work_B, self.scale[None]
        if x.is_cuda:
            return adapted(x, weight, bias, *own, slots, [weight.shape[0]])[0]
        return with_delta(x, weight, bias, self.work_A[slots], self.work_B[slots], self.scale[slots])[0]
