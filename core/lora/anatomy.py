"""What is inside an adapter: how much it changes each layer, and how many directions it really uses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import InvalidAdapter
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.low_rank import decompose, singular_values

_ENERGY_HELD = 0.99


@dataclass(frozen=True)
class ModuleAnatomy:
    """One layer of an adapter."""

    path: str
    rank: int
    delta_norm: float
    """‖ΔW‖, Frobenius."""
    weight_norm: float | None
    """‖W‖ of the layer it changes; None where the base's files were not read."""
    singular_values: tuple[float, ...]
    """Of ΔW, descending."""
    effective_rank: float
    """exp of the entropy of the normalised singular values (Roy and Vetterli 2007, EUSIPCO, definition 1)."""
    rank_held: int
    """The lowest rank that keeps 99 % of ‖ΔW‖²."""

    @property
    def relative(self) -> float | None:
        """‖ΔW‖ / ‖W‖."""
        return self.delta_norm / self.weight_norm if self.weight_norm else None


def anatomy(adapter: AdapterWeights, weight_norms: Mapping[str, float] | None = None) -> list[ModuleAnatomy]:
    """Every layer of `adapter`, in order of its path; weight_norms gives ‖W‖ by module path.

    Raises InvalidAdapter if its ΔW is no product of low-rank factors.
    """
    return [
        _module(path, _rank(factors), singular_values(factors), (weight_norms or {}).get(path))
        for path, factors in sorted(adapter.low_rank().items(), key=lambda pair: _natural(pair[0]))
    ]


def _rank(factors: LayerFactors) -> int:
    """r; of experts that of all together."""
    return factors.rank * (len(factors.A) if factors.of_experts else 1)


def _module(path: str, rank: int, S: Tensor, weight_norm: float | None) -> ModuleAnatomy:
    energy = S.square()
    total = float(energy.sum())
    held = int((energy.cumsum(0) < _ENERGY_HELD * total).sum()) + 1 if total else 0
    return ModuleAnatomy(
        path=path,
        rank=rank,
        delta_norm=math.sqrt(total),
        weight_norm=weight_norm,
        singular_values=tuple(S.tolist()),
        effective_rank=_effective_rank(S),
        rank_held=held,
    )


def _effective_rank(S: Tensor) -> float:
    total = float(S.sum())
    if not total:
        return 0.0
    p = S[S > 0] / total
    return math.exp(-float((p * p.log()).sum()))


def _natural(path: str) -> tuple[tuple[int, int, str], ...]:
    """Layer 10 behind layer 9."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.split("."))


def subspace_similarity(one: Tensor, other: Tensor) -> Tensor:
    """φ(i, j) for all i and j: how much of the first i directions of `one` lies in the first j directions of
    `other`.

    one [r₁, n] and other [r₂, n] hold orthonormal rows. φ(i, j) = ‖U₁ᵢᵀ·U₂ⱼ‖²_F / min(i, j) lies between 0
    (orthogonal) and 1 (contained); [r₁, r₂]. Hu et al. 2021, arXiv 2106.09685, section 7.2, equation 4, and
    appendix G.
    """
    overlap = (one @ other.T).square().cumsum(0).cumsum(1)
    i = torch.arange(1, one.shape[0] + 1, dtype=overlap.dtype)
    j = torch.arange(1, other.shape[0] + 1, dtype=overlap.dtype)
    return overlap / torch.minimum(i[:, None], j[None, :])


def compare_subspaces(one: AdapterWeights, other: AdapterWeights) -> dict[str, Tensor]:
    """For each layer, no experts, that both adapters change: φ(i, j) of the input directions of their ΔW,
    [rank₁, rank₂].

    Raises InvalidAdapter if no layer is changed by both, or one of them is not low-rank.
    """
    shared = sorted(set(one.layers) & set(other.layers) - {*one.experts}, key=_natural)
    if not shared:
        raise InvalidAdapter(
            "The two adapters have no layer in common beside experts, so there is nothing to compare."
            if one.experts
            else "The two adapters have no layer in common, so there is nothing to compare."
        )
    ones, others = one.low_rank(), other.low_rank()
    found = {}
    for path in shared:
        mine, theirs = decompose(ones[path]), decompose(others[path])
        found[path] = subspace_similarity(mine.V[: mine.numerical_rank], theirs.V[: theirs.numerical_rank])
    return found
