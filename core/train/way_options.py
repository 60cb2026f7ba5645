"""Options of a training that only the quick way knows. Needs no torch."""

from __future__ import annotations

from core.base_model.quantisation import NONE, plain_on_the_general_way
from core.base_model.way import GENERAL_NAME
from core.errors import InvalidConfig
from core.train.config import TrainConfig


def require_way(way: str, name: str, train: TrainConfig) -> None:
    """Raise InvalidConfig for options that the base `name`, which is computed on this way, cannot keep."""
    asked = [option for option in ("packing", "compile") if getattr(train, option) == "on"]
    if way == GENERAL_NAME and train.quantisation != NONE:
        raise InvalidConfig(plain_on_the_general_way(name))
    if asked and way == GENERAL_NAME:
        raise InvalidConfig(
            f"{asked[0]} = on cannot be used with {name}, which is computed on the general way: rows are not "
            f"packed there and layers not compiled. Leave {asked[0]} at auto, or say off."
        )
