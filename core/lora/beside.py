"""The product of a frozen layer with the adapters' part inside it, however the base holds its weight."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from core.lora.fp8 import fp8_linear, quantised_rows
from core.lora.layer import plain_weight
from core.lora.ops import lora_linear, lora_linear_frozen_a
from core.lora.quantised import FP8, QuantisedLinear, frozen_product
from core.lora.quantised_ops import quantised_linear, quantised_linear_frozen_a


def beside(
    x: Tensor,
    base: nn.Module,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    work_A: Tensor,
    work_B: Tensor,
    scale: Tensor,
) -> Tensor:
    """y of lora_linear() with the weight of `base`."""
    factors = A, B, work_A, work_B, scale
    if isinstance(base, QuantisedLinear):
        packed = base.packed
        if packed.how == FP8:
            return fp8_linear(x, *quantised_rows(x.detach()), packed.tensors, bias, *factors)[0]
        return quantised_linear(x, packed.tensors, packed.how, packed.shape[0], bias, *factors)[0]
    return lora_linear(x, plain_weight(base), bias, *factors)[0]


def beside_frozen_a(
    x: Tensor,
    base: nn.Module,
    bias: Tensor | None,
    B: Tensor,
    work_A: Tensor,
    work_B: Tensor,
    scale: Tensor,
) -> Tensor:
    """y of lora_linear_frozen_a() with the weight of `base`."""
    factors = B, work_A, work_B, scale
    if isinstance(base, QuantisedLinear):
        packed = base.packed
        if packed.how == FP8:
            return fp8_linear(x, *quantised_rows(x.detach()), packed.tensors, bias, None, *factors)[0]
        return quantised_linear_frozen_a(x, packed.tensors, packed.how, packed.shape[0], bias, *factors)[0]
    return lora_linear_frozen_a(x, plain_weight(base), bias, *factors)[0]


def without_bias(x: Tensor, base: nn.Module) -> Tensor:
    """x·Wᵀ with the weight of `base`; differentiable in x."""
    if isinstance(base, QuantisedLinear):
        return frozen_product(x, base.packed, None)
    return F.linear(x, plain_weight(base))
