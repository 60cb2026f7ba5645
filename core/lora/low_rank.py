"""Arithmetic on ΔW = scale·B·A without ever forming it: sums, inner products, singular values, truncation.

A product of thin factors has the singular values of a small matrix: with B = Q_B·R_B and Aᵀ = Q_A·R_A, ΔW =
Q_B·(R_B·R_Aᵀ)·Q_Aᵀ, and the bracket is only R × R. That is exact, and for a 4096 × 4096 layer a thousand
times less work than decomposing ΔW itself. Everything is computed in float64: the small matrices cost
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.lora.adapter import LayerFactors

_NEGLIGIBLE = 1e-9  # singular values below this share of the largest are rounding


@dataclass(frozen=True)
class Decomposition:
    """ΔW = U·diag(S)·V: U [out, R] with orthonormal columns, S [R] descending, V [R, in] with orthonormal
    rows; float64.
    """

    U: Tensor
    S: Tensor
    V: Tensor

    @property
    def energy(self) -> float:
        """‖ΔW‖², the sum of the squared singular values."""
        return float(self.S.square().sum())

    @property
    def numerical_rank(self) -> int:
        """Singular values that are more than rounding; at least 1,
        since an adapter's factors need one row.
        """
        return max(1, int((_NEGLIGIBLE * self.S[:1] < self.S).sum()))

    def truncated(self, rank: int) -> LayerFactors:
        """The best approximation of this rank in the Frobenius norm (Eckart and Young 1936), the scale folded
        in.

        Each factor gets the square root of S, so that neither is much larger than the other.
        """
        rank = min(rank, len(self.S))
        root = self.S[:rank].sqrt()
        return LayerFactors((root[:, None] * self.V[:rank]).float(), (self.U[:, :rank] * root).float(), 1.0)

    def lost(self, rank: int) -> float:
        """‖ΔW − truncated(rank)‖²."""
        return float(self.S[rank:].square().sum())


def weighted_sum(parts: Sequence[tuple[LayerFactors, float]]) -> LayerFactors:
    """Σ wᵢ·ΔWᵢ as one pair of factors: the A stacked, the B beside each other with their scales and weights.

    Ranks add up.
    """
    A = torch.cat([factors.A.float() for factors, _ in parts], dim=-2)
    B = torch.cat([factors.B.float() * (factors.scale * weight) for factors, weight in parts], dim=-1)
    return LayerFactors(A, B, 1.0)


def decompose(factors: LayerFactors) -> Decomposition:
    """The singular value decomposition of ΔW, by two QR decompositions and a small SVD."""
    Q_B, R_B = torch.linalg.qr(factors.B.double() * factors.scale)
    Q_A, R_A = torch.linalg.qr(factors.A.double().T)
    U, S, V = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return Decomposition(Q_B @ U, S, V @ Q_A.T)


def singular_values(factors: LayerFactors) -> Tensor:
    """The singular values of ΔW, descending, [min(r, in, out)], float64; of experts those of all together, as
    of one matrix with their ΔW along its diagonal.
    """
    R_B = torch.linalg.qr(factors.B.double() * factors.scale, mode="r").R
    R_A = torch.linalg.qr(factors.A.double().mT, mode="r").R
    return torch.linalg.svdvals(R_B @ R_A.mT).flatten().sort(descending=True).values


def inner_product(one: LayerFactors, other: LayerFactors) -> float:
    """⟨ΔW₁, ΔW₂⟩ = Σ ((B₁ᵀB₂) ∘ (A₁A₂ᵀ)), times both scales."""
    left = one.B.double().mT @ other.B.double()
    right = one.A.double() @ other.A.double().mT
    return float((left * right).sum()) * one.scale * other.scale


def decompose_dense(delta: Tensor, rank: int, exact_up_to: int = 2048) -> Decomposition:
    """The leading singular values and vectors of a dense ΔW [out, in]; at least `rank` of them.

    Exact for layers up to that wide. Above, by subspace iteration from a fixed start (Halko et al. 2011,
    arXiv 0909.4061, algorithm 4.4): the leading values agree to the printed digits, and it takes seconds
    instead of minutes.
    """
    narrow = min(delta.shape)
    if narrow <= exact_up_to:
        U, S, V = torch.linalg.svd(delta.double(), full_matrices=False)
        return Decomposition(U, S, V)
    wanted = min(narrow, rank + 32)
    generator = torch.Generator(delta.device).manual_seed(0)
    Q = torch.linalg.qr(
        delta @ torch.randn(delta.shape[1], wanted, generator=generator, device=delta.device)
    ).Q
    for _ in range(6):
        Q = torch.linalg.qr(delta @ torch.linalg.qr(delta.T @ Q).Q).Q
    U, S, V = torch.linalg.svd((Q.T @ delta).double(), full_matrices=False)
    return Decomposition(Q.double() @ U, S, V)
