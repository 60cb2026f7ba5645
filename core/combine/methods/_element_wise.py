"""What the methods share that work on the single elements of ΔW."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.combine.methods import CombineMethod

if TYPE_CHECKING:
    from torch import Tensor

    from core.combine.combining import CombinedLayer, WeightedFactors
    from core.combine.config import CombineConfig
    from core.combine.sparse import Weighted


class ElementWise(CombineMethod):
    """Forms ΔW of a layer element by element, and cuts it to the chosen rank."""

    uses: tuple[str, ...] = ("rank", "density")

    def dense(self, path: str, parts: Weighted, config: CombineConfig) -> Tensor:
        """The combined ΔW [out, in] of one layer, before it is cut."""
        raise NotImplementedError

    def layer(self, path: str, parts: WeightedFactors, config: CombineConfig) -> CombinedLayer:
        """See CombineMethod."""
        from core.combine.combining import cut, wanted_rank
        from core.lora.low_rank import decompose_dense

        rank = wanted_rank(parts, config)
        deltas = [(factors.delta_weight(), weight) for factors, weight in parts]
        whole = self.dense(path, deltas, config)
        return cut(decompose_dense(whole, rank), rank, float(whole.double().square().sum()))
