"""DARE (Yu et al. 2023, arXiv 2311.03099) before a plain sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.combine.methods._element_wise import ElementWise

if TYPE_CHECKING:
    from torch import Tensor

    from core.combine.config import CombineConfig
    from core.combine.sparse import Weighted


class DareLinear(ElementWise):
    """Σ wᵢ·drop(ΔWᵢ)."""

    name, label, order = "dare_linear", "DARE, linear", 40
    help = "The sum of what is left after dropping at random; cut to the rank."
    uses = ("rank", "density", "seed")

    def dense(self, path: str, parts: Weighted, config: CombineConfig) -> Tensor:
        """See ElementWise."""
        from core.combine.sparse import added, all_dropped

        return added(all_dropped(path, parts, config))


KIND = DareLinear()
