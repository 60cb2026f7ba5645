"""How adapters become a new one, and which weights they may have."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from core.errors import InvalidConfig
from core.options import Config, option

LARGEST_WEIGHT = 1000
COMBINE_METHODS = ("svd", "cat", "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")


@dataclass(frozen=True)
class CombineConfig(Config):
    """How adapters become a new one."""

    method: str = option(
        "svd",
        "Method",
        "cat: exact, ranks add up. linear: exact, in the lowest rank that holds it. svd: the best of a "
        "chosen rank. "
        "ties, dare_linear, dare_ties, magnitude_prune: element by element, then cut to the rank.",
        choices=COMBINE_METHODS,
    )
    rank: int = option(
        0, "Rank (r)", "Of the result; 0: the highest of its parents.", minimum=0, maximum=1024
    )
    density: float = option(
        0.5,
        "Density",
        "Share of ΔW's elements that ties, dare and magnitude_prune keep.",
        minimum=0.001,
        maximum=1.0,
    )
    seed: int = option(0, "Seed", "Of what dare drops.", minimum=0, maximum=2**31 - 1)


def require_weights(weights: Iterable[float]) -> None:
    """Raise InvalidConfig for the weight of an adapter that is no finite number, or so large that sums would
    overflow.
    """
    for weight in weights:
        if not math.isfinite(weight) or abs(weight) > LARGEST_WEIGHT:
            raise InvalidConfig(
                f"The weight of an adapter must be from -{LARGEST_WEIGHT:,} to {LARGEST_WEIGHT:,}, not "
                f"{weight:g}."
            )
