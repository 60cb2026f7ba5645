"""What PiSSA and OLoRA share: factors that start as a part of W, beside a base that stays as it is.

The papers put W − s·B₀·A₀ in W's place. Here others use the same base, so the adapter itself is

    ΔW = s·(B·A − B₀·A₀) = s·((B − B₀)·A + B₀·(A − A₀))

with the start A₀, B₀ kept and not trained. The right side is exactly zero before the first step and subtracts
nothing large, whatever the dtype; it is a LoRA of rank 2r, which is what is stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from core.errors import InvalidConfig
from core.lora.kinds import AdapterKind, LayerTensor
from core.lora.kinds.lora import Lora
from core.options import NoOptions

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from core.lora.adapter import AdapterWeights, LayerWeights
    from core.lora.stack import AdapterStack


class FromWeight(Lora):
    """LoRA that starts from W. Derived kinds say how in directions()."""

    options = NoOptions
    takes_parts = takes_experts = False
    starts_from_weight = True

    def tensors(self, n_in: int, n_out: int, rank: int) -> tuple[LayerTensor, ...]:
        """A and B, and how they started. Raises InvalidConfig for a rank that W does not have."""
        if rank > min(n_in, n_out):
            raise InvalidConfig(
                f"{self.label} of rank {rank} takes as many directions of W, and a layer of {n_in} inputs "
                f"and {n_out} outputs has {min(n_in, n_out)}; choose a rank up to that."
            )
        A, B = (rank, n_in), (n_out, rank)
        return (
            *(LayerTensor("A", A), LayerTensor("B", B)),
            *(LayerTensor("A0", A, trained=False), LayerTensor("B0", B, trained=False)),
        )

    def directions(self, weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] to start from; `weight` is W in float32."""
        raise NotImplementedError

    def start(
        self, n_in: int, n_out: int, rank: int, weight: Tensor, generator: Generator, own: Any
    ) -> Mapping[str, Tensor]:
        """The directions of W, and the same once more to stay as they are."""
        A, B = (one.cpu().contiguous() for one in self.directions(weight.float(), rank))
        return {"A": A, "B": B, "A0": A.clone(), "B0": B.clone()}

    def stack(self) -> type[AdapterStack]:
        """LoRA's operator with both halves of ΔW."""
        from core.lora.from_start import FromStartFactors

        return FromStartFactors

    def added(
        self, x: Tensor, y: Tensor, weight: Tensor, tensors: Mapping[str, Tensor], scale: Tensor
    ) -> Tensor:
        """s·(B·A − B₀·A₀)·x."""
        from core.lora.from_start import both_halves

        A, B = both_halves(*(tensors[name] for name in ("A", "B", "A0", "B0")))
        return super().added(x, y, weight, {"A": A, "B": B}, scale)

    def layer(self, tensors: Mapping[str, Tensor], scale: float) -> LayerWeights:
        """A, B, A₀, B₀."""
        return AdapterKind.layer(self, tensors, scale)

    state_names = frozenset({"A", "B", "A0", "B0"})

    def finished(self, adapter: AdapterWeights) -> AdapterWeights:
        """A LoRA of twice the rank and the same scale."""
        from core.lora.adapter import LayerFactors
        from core.lora.from_start import both_halves

        layers = {}
        for path, layer in adapter.layers.items():
            own = (layer.tensors[name][None] for name in ("A", "B", "A0", "B0"))
            A, B = both_halves(*own)
            layers[path] = LayerFactors(A[0], B[0], layer.scale)
        alpha = adapter.alpha * (math.sqrt(2) if adapter.use_rslora else 2)
        return replace(adapter, kind="lora", rank=2 * adapter.rank, alpha=alpha, layers=layers)

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Never: what is stored is a LoRA."""
        return False
