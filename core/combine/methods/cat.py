"""The factors beside each other: the sum without any loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.combine.methods import CombineMethod

if TYPE_CHECKING:
    from core.combine.combining import CombinedLayer, WeightedFactors
    from core.combine.config import CombineConfig


class Cat(CombineMethod):
    """Σ wᵢ·ΔWᵢ, all A stacked and all B side by side."""

    name, label, order = "cat", "Concatenation", 10
    help = "Exact, ranks add up."

    def layer(self, path: str, parts: WeightedFactors, config: CombineConfig) -> CombinedLayer:
        """See CombineMethod."""
        from core.combine.combining import CombinedLayer
        from core.lora.low_rank import inner_product, weighted_sum

        whole = weighted_sum(parts)
        return CombinedLayer(whole, 0.0, inner_product(whole, whole))


KIND = Cat()
