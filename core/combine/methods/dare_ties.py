"""DARE (Yu et al. 2023, arXiv 2311.03099) before the vote of TIES (arXiv 2306.01708)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.combine.methods._element_wise import ElementWise

if TYPE_CHECKING:
    from torch import Tensor

    from core.combine.config import CombineConfig
    from core.combine.sparse import Weighted


class DareTies(ElementWise):
    """For each element the mean of those dropped ΔWᵢ that pull the elected way."""

    name, label, order = "dare_ties", "DARE, TIES", 50
    help = "As ties, after dropping at random; cut to the rank."
    uses = ("rank", "density", "seed")

    def dense(self, path: str, parts: Weighted, config: CombineConfig) -> Tensor:
        """See ElementWise."""
        from core.combine.sparse import agreeing_mean, all_dropped

        return agreeing_mean(all_dropped(path, parts, config))


KIND = DareTies()
