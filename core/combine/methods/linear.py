"""The sum without loss, in no more rank than it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.combine.methods import CombineMethod

if TYPE_CHECKING:
    from core.combine.combining import CombinedLayer, WeightedFactors
    from core.combine.config import CombineConfig


class Linear(CombineMethod):
    """Σ wᵢ·ΔWᵢ, in the lowest rank that holds it."""

    name, label, order = "linear", "Linear", 20
    help = "Exact, in the lowest rank that holds it."

    def layer(self, path: str, parts: WeightedFactors, config: CombineConfig) -> CombinedLayer:
        """See CombineMethod."""
        from core.combine.combining import CombinedLayer
        from core.lora.low_rank import decompose, weighted_sum

        found = decompose(weighted_sum(parts))
        return CombinedLayer(found.truncated(found.numerical_rank), 0.0, found.energy)


KIND = Linear()
