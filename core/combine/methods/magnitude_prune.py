"""The sum of what is largest in each parent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.combine.methods._element_wise import ElementWise

if TYPE_CHECKING:
    from torch import Tensor

    from core.combine.config import CombineConfig
    from core.combine.sparse import Weighted


class MagnitudePrune(ElementWise):
    """Σ wᵢ·trim(ΔWᵢ)."""

    name, label, order = "magnitude_prune", "Magnitude pruning", 60
    help = "The sum of the largest elements of each; cut to the rank."

    def dense(self, path: str, parts: Weighted, config: CombineConfig) -> Tensor:
        """See ElementWise."""
        from core.combine.sparse import added, all_trimmed

        return added(all_trimmed(parts, config.density))


KIND = MagnitudePrune()
