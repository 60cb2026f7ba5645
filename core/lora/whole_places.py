"""The modules of a base that adapters in training have whole parameters of, and what these compute with."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from core.lora.layer import Place
from core.lora.layout import HEAD
from core.lora.whole_stack import Own, OwnBias, OwnModule, by_module
from core.lora.wholes import BIAS, BIAS_ON_B, WEIGHT, Wholes

if TYPE_CHECKING:
    from core.lora.bank import AdapterBank
    from core.lora.wrapping import ModelLayers


def trained_wholes(
    bank: AdapterBank, layers: ModelLayers, wholes: Wholes
) -> dict[str, tuple[Place, OwnModule | OwnBias]]:
    """Of each such module, by its path, the place in the model and the stack, whose numbers lie in `bank`."""
    found: dict[str, tuple[Place, OwnModule | OwnBias]] = {}
    laid_out = {name: name for name in bank.head_shapes}
    for path, names in by_module(wholes.with_tied(laid_out)).items():
        place = layers.place(path)
        if WEIGHT in names:
            own = functools.partial(_numbers, bank, names)
            found[path] = place, OwnModule(own, place.weight.dtype)
        else:
            found[path] = place, _biases(bank, path, place, names)
    return found


def _numbers(bank: AdapterBank, names: Mapping[str, str]) -> list[Own]:
    """A module's whole parameters in each slot, by what functional_call calls them."""
    heads = map(bank.head, range(bank.slots))
    return [{end.removeprefix("."): head[name] for end, name in names.items()} for head in heads]


def _biases(bank: AdapterBank, path: str, place: Place, names: Mapping[str, str]) -> OwnBias:
    """The biases of all slots as one parameter each, [K, out]."""
    stacked = {}
    for end, name in names.items():
        lying = bank.layout.places[HEAD][name]
        stacked[end] = nn.Parameter(lying.of(bank.flat), requires_grad=bank.grad is not None)
        stacked[end].grad = None if bank.grad is None else lying.of(bank.grad)
    inner = bank.factors.get(path)
    scale = inner.scale if inner is not None else None
    return OwnBias(inner, place.bias, stacked.get(BIAS), stacked.get(BIAS_ON_B), scale)
