"""TIES (Yadav et al. 2023, arXiv 2306.01708): trim, elect a sign, merge those that agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.combine.methods._element_wise import ElementWise

if TYPE_CHECKING:
    from torch import Tensor

    from core.combine.config import CombineConfig
    from core.combine.sparse import Weighted


class Ties(ElementWise):
    """For each element the mean of those trimmed ΔWᵢ that pull the elected way."""

    name, label, order = "ties", "TIES", 30
    help = "Each element by the majority of the largest; cut to the rank."

    def dense(self, path: str, parts: Weighted, config: CombineConfig) -> Tensor:
        """See ElementWise."""
        from core.combine.sparse import agreeing_mean, all_trimmed

        return agreeing_mean(all_trimmed(parts, config.density))


KIND = Ties()
