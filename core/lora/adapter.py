"""An adapter in memory: for each targeted layer the factors A and B and their scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerFactors:
    """One layer's part of an adapter: A [r, in], B [out, r] and the scale α/r."""

    A: Tensor
    B: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """r."""
        return int(self.A.shape[0])

    def delta_weight(self) -> Tensor:
        """ΔW = scale·B·A in float32, [out, in] (arXiv 2106.09685, equation 3)."""
        return self.scale * (self.B.float() @ self.A.float())


@dataclass(frozen=True)
class AdapterWeights:
    """A whole adapter: factors by module path, with the rank and alpha that its configuration states."""

    rank: int
    alpha: float
    dropout: float
    layers: dict[str, LayerFactors]
    base_fingerprint: str = ""
    base_name: str = ""
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    layers_to_transform: tuple[int, ...] | None = None
    """The decoder layers it adapts, counted from 0; None for all."""

    @property
    def target_names(self) -> list[str]:
        """The last names of the targeted modules, as PEFT's target_modules lists them."""
        return sorted({path.rpartition(".")[2] for path in self.layers})

    @property
    def highest_rank(self) -> int:
        """The largest rank of any layer."""
        return max(factors.rank for factors in self.layers.values())

    @property
    def parameter_count(self) -> int:
        """Numbers in all factors."""
        return sum(one.A.numel() + one.B.numel() for one in self.layers.values())

    def is_trained(self) -> bool:
        """Whether every number is finite and some B is not zero."""
        finite = all(
            bool(torch.isfinite(f.A).all() and torch.isfinite(f.B).all()) for f in self.layers.values()
        )
        return finite and any(bool(f.B.any()) for f in self.layers.values())
