"""A blend to answer with: the exact sum of weighted ΔW, of factors that are in memory already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.combine.combining import Part, combined_adapter
from core.errors import InvalidAdapter
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.low_rank import weighted_sum


def blended(parts: Sequence[Part]) -> AdapterWeights:
    """Σ wᵢ·ΔWᵢ without loss: of each layer the A stacked, the B beside each other with scales and weights
    folded in. Ranks add up; who does not target a layer has no part there.

    Raises InvalidAdapter, with the reason, for one whose ΔW is no product of factors or who is more than it.
    """
    found = [(_factors(part), part.weight) for part in parts]
    paths = dict.fromkeys(path for factors, _ in found for path in factors)
    layers = {
        path: weighted_sum([(factors[path], weight) for factors, weight in found if path in factors])
        for path in paths
    }
    return combined_adapter(parts, layers)


def _factors(part: Part) -> Mapping[str, LayerFactors]:
    try:
        part.adapter.require_factors_alone("a blend")
        return part.adapter.low_rank()
    except InvalidAdapter as error:
        raise InvalidAdapter(f"{part.name} cannot be part of a blend. {error}") from None
