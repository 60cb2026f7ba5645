"""PiSSA (Meng et al. 2024, arXiv 2404.02948): the factors start as the leading singular directions of W.

With W ≈ U·S·Vᵀ, cut to r: B₀ = U·√S / √s and A₀ = √S·Vᵀ / √s, so that s·B₀·A₀ is that part of W.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from core.lora.kinds._from_weight import FromWeight

if TYPE_CHECKING:
    from torch import Tensor

_EXACT_UP_TO = 512  # wide; a larger W is cut by subspace iteration: a second where this takes minutes


class Pissa(FromWeight):
    """Trains the largest directions of W."""

    name, label, order = "pissa", "PiSSA", 30
    help = (
        "LoRA that starts from the strongest directions of W; stored as a LoRA of twice the rank, which "
        "loads anywhere. Once the learning rate is tuned, such variants lie within 1 to 2 % of LoRA (arXiv "
        "2602.04998). A step takes as long as LoRA's."
    )

    def directions(self, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """By a singular value decomposition of W, for the scale 1."""
        from core.lora.low_rank import decompose_dense

        found = decompose_dense(weight, rank, exact_up_to=_EXACT_UP_TO).truncated(rank)
        return found.A, found.B

    def started(self, tensors: Mapping[str, Tensor], scale: float) -> Mapping[str, Tensor]:
        """Each factor takes its share of the scale."""
        return {name: tensor / scale**0.5 for name, tensor in tensors.items()}


KIND = Pissa()
