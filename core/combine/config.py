"""How adapters become a new one: the method, and the options that matter to some of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from core.combine.methods import COMBINE_METHODS
from core.errors import InvalidConfig
from core.options import Config, option

LARGEST_WEIGHT = 1000


def _matters_to(name: str) -> str:
    """The methods to which an option matters, in words."""
    return ", ".join(one.name for one in COMBINE_METHODS.all().values() if name in one.uses)


@dataclass(frozen=True)
class CombineConfig(Config):
    """How adapters become a new one."""

    method: str = option(
        "svd",
        "Method",
        COMBINE_METHODS.help,
        choices=lambda: COMBINE_METHODS.names,
    )
    rank: int = option(
        0,
        "Rank (r)",
        lambda: f"Of the result of {_matters_to('rank')}; 0: the highest of its parents.",
        minimum=0,
        maximum=1024,
    )
    density: float = option(
        0.5,
        "Density",
        lambda: f"Share of ΔW's elements that {_matters_to('density')} keep.",
        minimum=0.001,
        maximum=1.0,
    )
    seed: int = option(
        0, "Seed", lambda: f"Of what {_matters_to('seed')} drop.", minimum=0, maximum=2**31 - 1
    )


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
