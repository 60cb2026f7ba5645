"""The sum cut to a chosen rank by its singular values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.combine.methods import CombineMethod

if TYPE_CHECKING:
    from core.combine.combining import CombinedLayer, WeightedFactors
    from core.combine.config import CombineConfig


class Svd(CombineMethod):
    """Σ wᵢ·ΔWᵢ, in the best approximation of a chosen rank."""

    name, label, order = "svd", "SVD", 0
    help = "The best of a chosen rank."
    uses = ("rank",)

    def layer(self, path: str, parts: WeightedFactors, config: CombineConfig) -> CombinedLayer:
        """See CombineMethod."""
        from core.combine.combining import cut, wanted_rank
        from core.lora.low_rank import decompose, weighted_sum

        found = decompose(weighted_sum(parts))
        return cut(found, wanted_rank(parts, config), found.energy)


KIND = Svd()
