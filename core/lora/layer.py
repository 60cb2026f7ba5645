"""Low-rank adaptation of one linear layer, for K adapters on one frozen weight.

            x ──────────────► W (frozen) ────────────► + ──► y
            │                                          ▲
            └──► A[k] (r×in) ──► B[k] (out×r) ──► · s[k]         y = W·x + s·B·A·x,  s = α/r

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, equation 3. A starts
Kaiming-uniform with a = √5 and B at zero, as in the authors' loralib, so ΔW = s·B·A is exactly zero before
the first step. The forward pass never changes W.

The factors of K adapters are stacked, A[K, r_max, in] and B[K, out, r_max]; an adapter of lower rank is
padded with zero rows, which add nothing and get no gradient. A batch holds the same number of rows for each
adapter in use, in order, so that the adapter path is two batched products, whatever K is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from core.lora.dropout import Dropout
from core.lora.ops import lora_linear, lora_linear_one_token, with_delta


class LoraFactors(nn.Module):
    """The stacked factors of K adapters for one linear layer, and each adapter's scale.

    A and B are what is stored and trained; work_A and work_B are the same numbers in the dtype the base
    computes in, and the same tensors where that is the stored one. All are views into the bank's storage.
    """

    scale: Tensor
    work_A: Tensor
    work_B: Tensor

    def __init__(
        self, A: Tensor, B: Tensor, work_A: Tensor, work_B: Tensor, scale: Tensor, dropout: Dropout | None
    ) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)
        self.register_buffer("work_A", work_A)
        self.register_buffer("work_B", work_B)
        self.register_buffer("scale", scale)
        self.dropout = dropout

    def linear(self, x: Tensor, base: nn.Module, slots: Tensor | None) -> Tensor:
        """The layer's output with the adapters' part.

        x [N, …, in] holds N / len(slots) consecutive rows for each entry of `slots`; None means all slots in
        order. Returns [N, …, out].
        """
        weight, bias = plain_weight(base), base.bias
        if slots is not None:
            return self._chosen(x, weight, bias, slots)  # type: ignore[arg-type]
        if self.dropout is not None and self.training:
            return base(x) + self._dropped_delta(x)
        y, _ = lora_linear(x, weight, bias, self.A, self.B, self.work_A, self.work_B, self.scale)
        return y

    def _chosen(self, x: Tensor, weight: Tensor, bias: Tensor | None, slots: Tensor) -> Tensor:
        """Inference with a choice of slots."""
        one_token = x.is_cuda and x.shape[:-1].numel() == slots.shape[0]
        if one_token:
            flat = x.reshape(-1, x.shape[-1])
            y, delta = lora_linear_one_token(flat, weight, bias, self.work_A, self.work_B, self.scale, slots)
            return (y + delta).view(*x.shape[:-1], -1)
        return with_delta(x, weight, bias, self.work_A[slots], self.work_B[slots], self.scale[slots])[0]

    def _dropped_delta(self, x: Tensor) -> Tensor:
        """scale·B·A·dropout(x) by ordinary differentiation; only adapters trained with dropout come here."""
        assert self.dropout is not None
        grouped = self.dropout(x).reshape(self.A.shape[0], -1, x.shape[-1])
        low = torch.bmm(grouped, self.A.to(x.dtype).transpose(1, 2)) * self.scale[:, None, None].to(x.dtype)
        return torch.bmm(low, self.B.to(x.dtype).transpose(1, 2)).reshape(*x.shape[:-1], -1)


class LoraLinear(nn.Module):
    """A frozen linear layer and the factors in use on it.

    Without factors it computes exactly what the base does.
    """

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
        return self.base(x) if self.factors is None else self.factors.linear(x, self.base, self.slots)


def is_linear(module: nn.Module) -> bool:
    """Whether LoRA can be applied to `module`."""
    return isinstance(module, (nn.Linear, Conv1D))


def plain_weight(base: nn.Module) -> Tensor:
    """W as [out, in], a view where the base stores it transposed."""
    return base.weight.t() if isinstance(base, Conv1D) else base.weight  # type: ignore[return-value]


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a linear layer, Conv1D included."""
    rows, columns = module.weight.shape  # type: ignore[misc]
    return (int(rows), int(columns)) if isinstance(module, Conv1D) else (int(columns), int(rows))
