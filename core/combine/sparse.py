"""Combining adapters element by element, on the dense ΔW of one layer: magnitude pruning, DARE and TIES.

Each function takes the parents' ΔW [out, in] with their weights and gives the combined ΔW. They hold only on
ΔW itself: applied to A and B apart, as is often done, they combine something else.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from core.combine.config import CombineConfig

Weighted = Sequence[tuple[Tensor, float]]
"""ΔW [out, in] of one layer of each parent, with its weight."""


def all_trimmed(parts: Weighted, density: float) -> Weighted:
    """Each parent's ΔW trimmed by itself."""
    return [(trimmed(delta, density), weight) for delta, weight in parts]


def all_dropped(path: str, parts: Weighted, config: CombineConfig) -> Weighted:
    """Each parent's ΔW with elements dropped at random.

    What is dropped is drawn by the seed and the layer's name, so it does not depend on the order of the
    layers.
    """
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + zlib.crc32(path.encode()))
    return [(dropped(delta, config.density, generator), weight) for delta, weight in parts]


def trimmed(delta: Tensor, density: float) -> Tensor:
    """The share `density` of elements with the largest magnitude, the rest zero (TIES, arXiv 2306.01708,
    section 3: trim).
    """
    kept = max(1, round(density * delta.numel()))
    if kept >= delta.numel():
        return delta
    threshold = delta.abs().flatten().kthvalue(delta.numel() - kept + 1).values
    return torch.where(delta.abs() >= threshold, delta, 0.0)


def dropped(delta: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Each element kept with probability `density` and then divided by it (DARE, arXiv 2311.03099, equation
    1).
    """
    kept = torch.rand(delta.shape, generator=generator, device=delta.device) < density
    return torch.where(kept, delta / density, 0.0)


def added(parts: Weighted) -> Tensor:
    """Σ wᵢ·ΔWᵢ."""
    total = torch.zeros_like(parts[0][0])
    for delta, weight in parts:
        total.add_(delta, alpha=weight)
    return total


def agreeing_mean(parts: Weighted) -> Tensor:
    """For each element the mean of the weighted ΔW whose sign is that of their sum (TIES, section 3: elect
    and merge).

    The weights, negative ones too, count before the vote: to subtract an adapter is to add its opposite.
    """
    stack = torch.stack([delta * weight for delta, weight in parts])
    elected = stack.sum(0).sign()
    agree = (stack.sign() == elected) & (stack != 0)
    return torch.where(agree, stack, 0.0).sum(0) / agree.sum(0).clamp(min=1)
