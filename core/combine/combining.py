"""Adapters combined into a new one, always on ΔW and never on A and B apart; one layer at a time.

How a layer is combined is a method's affair, see core/combine/methods. What they share stands here: what a
cut to the chosen rank loses is measured, not guessed.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from core.combine.config import CombineConfig, require_weights
from core.combine.methods import COMBINE_METHODS
from core.errors import InvalidConfig, WrongBase
from core.events import Progress
from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.expert_factors import apart, together
from core.lora.low_rank import Decomposition, decompose, inner_product
from core.reporting import Report

_SAMPLED_ROWS = 256  # of each layer, evenly spaced: enough to see how far signs disagree


@dataclass(frozen=True)
class Part:
    """One parent: its name, its factors and the weight it gets, which may be negative."""

    name: str
    adapter: AdapterWeights
    weight: float

    @functools.cached_property
    def factors(self) -> dict[str, LayerFactors]:
        """Its ΔW by layer, and of experts by expert. Raises InvalidAdapter if its kind has no low-rank
        factors, or it is more than these.
        """
        self.adapter.require_factors_alone("a combination")
        return apart(self.adapter.low_rank())


WeightedFactors = Sequence[tuple[LayerFactors, float]]
"""One layer of the parents that target it, each with its weight."""


@dataclass(frozen=True)
class CombinedLayer:
    """What a method makes of one layer."""

    factors: LayerFactors
    energy_lost: float
    """‖ΔW − what the factors hold‖²: what was cut off."""
    energy: float
    """‖ΔW‖², of what was asked for."""


@dataclass(frozen=True)
class Combination:
    """A combined adapter, with what was kept of what was asked for."""

    adapter: AdapterWeights
    energy_lost: float
    """Share of ‖ΔW‖² that the rank does not hold, over all layers; 0 where nothing was cut."""
    energy_lost_by_layer: Mapping[str, float]


@dataclass(frozen=True)
class Parents:
    """How far the parents go together, before anything is combined."""

    norms: tuple[float, ...]
    """‖ΔW‖ of each parent over all layers, its weight not counted."""
    cosines: tuple[tuple[float, ...], ...]
    """⟨ΔWᵢ, ΔWⱼ⟩ / (‖ΔWᵢ‖·‖ΔWⱼ‖) over all layers: 1 the same direction, 0 unrelated, −1 opposite."""
    sign_conflicts: float
    """Share of the weighted magnitude that pulls against the larger side, from 256 evenly spaced rows of each
    layer.
    """


def combine(parts: Sequence[Part], config: CombineConfig, report: Report) -> Combination:
    """Combine adapters of one base.

    Raises WrongBase if they are of several, InvalidConfig if there is nothing to combine.
    """
    require_one_base(parts)
    paths = sorted({path for part in parts for path in part.factors})
    method = COMBINE_METHODS.get(config.method)
    layers: dict[str, CombinedLayer] = {}
    for number, path in enumerate(paths):
        report(Progress(f"Combining {path}", number / len(paths)))
        layers[path] = method.layer(path, _of_layer(parts, path), config)
    energy = sum(one.energy for one in layers.values())
    return Combination(
        adapter=combined_adapter(parts, _joined(parts, {path: one.factors for path, one in layers.items()})),
        energy_lost=sum(one.energy_lost for one in layers.values()) / max(energy, 1e-300),
        energy_lost_by_layer={
            path: one.energy_lost / max(one.energy, 1e-300) for path, one in layers.items()
        },
    )


def resize(adapter: AdapterWeights, rank: int) -> Combination:
    """The best approximation of an adapter with at most `rank` in every layer, and the energy it loses."""
    adapter.require_factors_alone("a cut to a rank")
    cut = {path: decompose(factors) for path, factors in apart(adapter.low_rank()).items()}
    layers = {path: one.truncated(min(rank, one.numerical_rank)) for path, one in cut.items()}
    lost = {path: one.lost(layers[path].rank) for path, one in cut.items()}
    energy = sum(one.energy for one in cut.values())
    parts = [Part("", adapter, 1.0)]
    return Combination(
        adapter=combined_adapter(parts, _joined(parts, layers)),
        energy_lost=sum(lost.values()) / max(energy, 1e-300),
        energy_lost_by_layer={path: lost[path] / max(one.energy, 1e-300) for path, one in cut.items()},
    )


def compare_parents(parts: Sequence[Part]) -> Parents:
    """Norms, cosines and sign conflicts of adapters that somebody thinks of combining.

    Raises as combine() does.
    """
    require_one_base(parts)
    count = len(parts)
    products = torch.zeros(count, count, dtype=torch.float64)
    against = magnitude = 0.0
    for path in sorted({path for part in parts for path in part.factors}):
        present = [(index, part) for index, part in enumerate(parts) if path in part.factors]
        for at, (i, one) in enumerate(present):
            for j, other in present[at:]:
                product = inner_product(one.factors[path], other.factors[path])
                products[i, j] += product
                if i != j:
                    products[j, i] += product
        conflict, total = _conflicts([(part.factors[path], part.weight) for _, part in present])
        against, magnitude = against + conflict, magnitude + total
    norms = products.diagonal().clamp(min=0).sqrt()
    cosines = products / torch.outer(norms, norms).clamp(min=1e-300)
    return Parents(
        norms=tuple(norms.tolist()),
        cosines=tuple(tuple(row) for row in cosines.tolist()),
        sign_conflicts=against / magnitude if magnitude else 0.0,
    )


def require_one_base(parts: Sequence[Part]) -> None:
    """Raise WrongBase unless all parts are of one base, InvalidConfig if there are none or all weights are
    zero.
    """
    if not parts or not any(part.weight for part in parts):
        raise InvalidConfig("Nothing to combine: give at least one adapter with a weight other than 0.")
    require_weights([part.weight for part in parts])
    first = parts[0]
    for part in parts[1:]:
        if part.adapter.base_fingerprint != first.adapter.base_fingerprint:
            raise WrongBase(
                f"{first.name} and {part.name} are of different bases "
                f"({first.adapter.base_fingerprint[:12]} and "
                f"{part.adapter.base_fingerprint[:12]}); only adapters of one base can be combined."
            )


def _of_layer(parts: Sequence[Part], path: str) -> WeightedFactors:
    """The parents' factors of one layer, in order. Who does not target it counts as zero there."""
    return [(part.factors[path], part.weight) for part in parts if path in part.factors]


def wanted_rank(parts: WeightedFactors, config: CombineConfig) -> int:
    """The rank that a layer is cut to: the chosen one, or the highest of its parents."""
    return config.rank or max(factors.rank for factors, _ in parts)


def cut(found: Decomposition, wanted: int, energy: float) -> CombinedLayer:
    """A layer's leading singular values, `wanted` of them or fewer; energy: ‖ΔW‖² of the whole."""
    rank = min(wanted, found.numerical_rank)
    kept = float(found.S[:rank].square().sum())
    return CombinedLayer(found.truncated(rank), max(0.0, energy - kept), energy)


def _joined(parts: Sequence[Part], layers: dict[str, LayerFactors]) -> dict[str, LayerFactors]:
    """The layers with the experts of each fused parameter together."""
    return together(layers, {path for part in parts for path in part.adapter.experts})


def combined_adapter(parts: Sequence[Part], layers: dict[str, LayerFactors]) -> AdapterWeights:
    """The scale is folded into the factors, so alpha equals the rank and the scale is 1."""
    rank = max(factors.rank for factors in layers.values())
    first = parts[0].adapter
    return AdapterWeights(
        rank=rank,
        alpha=float(rank),
        dropout=0.0,
        layers=layers,
        base_fingerprint=first.base_fingerprint,
        base_name=first.base_name,
        embedding=next((part.adapter.embedding for part in parts if part.adapter.embedding), ""),
        fan_in_fan_out=first.fan_in_fan_out,
    )


def _conflicts(parts: WeightedFactors) -> tuple[float, float]:
    """In sampled rows of one layer: the magnitude on the smaller side of each element's signs, and the
    magnitude in all.
    """
    rows = parts[0][0].B.shape[0]
    chosen = torch.arange(0, rows, max(1, rows // _SAMPLED_ROWS))
    stack = torch.stack(
        [
            weight * factors.scale * (factors.B[chosen].float() @ factors.A.float())
            for factors, weight in parts
        ]
    )
    magnitude = stack.abs().sum(0)
    return float((magnitude - stack.sum(0).abs()).sum()) / 2, float(magnitude.sum())
