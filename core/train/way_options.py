"""Options of a training that only the quick way knows. Needs no torch."""

from __future__ import annotations

from core.base_model.quantisation import FP8, NONE, plain_on_the_general_way
from core.base_model.way import GENERAL_NAME
from core.errors import InvalidConfig
from core.train.config import TrainConfig
from core.train.objectives import OBJECTIVES
from core.train.sharding import FSDP
from core.train.training_options import TrainingOptions


def why_not_in_parts(way: str, options: TrainingOptions) -> str:
    """Why a run cannot be trained on a base that is computed on this way and lies in parts on several cards;
    empty where it can.
    """
    lora, train = options.lora, options.train
    if train.machines > 1:
        return "that is for the cards of one machine (machines=1)"
    if lora.kind != "lora" or OBJECTIVES.get(train.objective).classifies:
        return "only LoRA of bases that write text is trained so"
    if lora.trains_wholes or lora.parameter_names:
        return "only factors of linear layers are trained so, and no embedding, head, bias or experts"
    if train.quantisation == FP8:
        return "a base in 8 bits for speed (FP8) is not laid out so (quantisation=none, int8 or nf4)"
    return "its base is computed on the general way" if way == GENERAL_NAME else ""


def require_sharding(way: str, options: TrainingOptions) -> None:
    """Raise InvalidConfig where the cards cannot hold the base as it is asked for."""
    if options.train.sharding != FSDP:
        return
    if options.train.devices == 1:
        raise InvalidConfig(
            "sharding = fsdp lays the base out over several cards of one machine, and devices is 1. Set "
            "devices to their number, or leave sharding at auto."
        )
    if why := why_not_in_parts(way, options):
        raise InvalidConfig(
            f"sharding = fsdp has each card hold a part of the base: {why}. Choose sharding=ddp, or auto."
        )


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
