"""Ways to combine adapters into a new one. Each is one file here; see core/seam.py.

The head that this file describes needs no torch, so the page and the command line can list the methods.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.seam import Seam

if TYPE_CHECKING:
    from core.combine.combining import CombinedLayer, WeightedFactors
    from core.combine.config import CombineConfig


class CombineMethod:
    """The head of a method, and the one thing it does."""

    name: str
    label: str
    help: str
    order: int = 100
    uses: tuple[str, ...] = ()
    """The options of CombineConfig that matter to it."""

    def layer(self, path: str, parts: WeightedFactors, config: CombineConfig) -> CombinedLayer:
        """Combine one layer of the parents that target it, each with its weight; path: the module's."""
        raise NotImplementedError


COMBINE_METHODS: Seam[CombineMethod] = Seam("core.combine.methods", CombineMethod, "combine method")
