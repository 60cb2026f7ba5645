"""Whole parameters that adapters of a bank to answer with have of their own, by slot."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from core.lora.adapter import AdapterWeights
from core.lora.expert_layer import AdaptedLayer
from core.lora.layer import Adaptable, LayerStack
from core.lora.whole_stack import Own, OwnBias, OwnModule, by_module
from core.lora.wholes import BIAS_ON_B, WEIGHT, module_of
from core.lora.wrapping import ModelLayers


class WholeSlots:
    """The modules that take part in a bank, and what each of them computes with."""

    def __init__(
        self,
        layers: Mapping[str, AdaptedLayer],
        slots: int,
        targeted: Mapping[str, AdaptedLayer],
        factors: Mapping[str, LayerStack],
    ) -> None:
        """layers: all of the base; those that are targeted compute with `factors`, by path."""
        self._all, self._slots = layers, slots
        self._targeted, self._factors = targeted, factors
        self.own: dict[int, dict[str, dict[str, Tensor]]] = {}
        """By slot, module path and what it is; only slots that have some."""
        self.places: dict[str, Adaptable] = dict(targeted)
        self.stacks: dict[str, LayerStack] = dict(factors)
        self.own_modules: list[OwnModule] = []

    def take(self, slot: int, adapter: AdapterWeights) -> None:
        """Compute with the whole parameters of the adapter in `slot`, if it has some.

        Raises InvalidAdapter if the base has none of such a name and shape.
        """
        self.own.pop(slot, None)
        if adapter.wholes:
            self.own[slot] = by_module(self._at_work(adapter))
        self.places, self.stacks = dict(self._targeted), dict(self._factors)
        for path in dict.fromkeys(path for own in self.own.values() for path in own):
            self.places[path] = self._model.place(path)
            self.stacks[path] = self._stack(path)
        self.own_modules = [one for one in self.stacks.values() if isinstance(one, OwnModule)]

    @property
    def _model(self) -> ModelLayers:
        assert isinstance(self._all, ModelLayers)
        return self._all

    def _at_work(self, adapter: AdapterWeights) -> dict[str, Tensor]:
        """Whole parameters as they compute: with a weight in the base's dtype, without one what a bias adds
        to the base's.
        """
        self._model.require(adapter.wholes)
        found: dict[str, Tensor] = {}
        moved: dict[int, Tensor] = {}  # tied ones are one tensor
        replaced = {path for path, own in by_module(adapter.wholes).items() if WEIGHT in own}
        for name, tensor in adapter.wholes.items():
            stored, path = self._model.stored(name), module_of(name)
            if path in replaced:
                dtype = stored.dtype
                found[name] = moved.setdefault(tensor.data_ptr(), tensor.to(stored.device, dtype))
            elif name.endswith(BIAS_ON_B):
                found[name] = tensor.to(stored.device) * adapter.layers[path].scale
            else:
                found[name] = tensor.to(stored.device) - stored
        return found

    def _stack(self, path: str) -> LayerStack:
        """What computes a module that some slots have numbers of their own for."""
        own = [self.own.get(slot, {}).get(path, {}) for slot in range(self._slots)]
        stack: LayerStack | None = self._factors.get(path)
        added = [_added(one) for one in own]
        first = next((one for one in added if one is not None), None)
        if first is not None:
            rows = [torch.zeros_like(first) if one is None else one for one in added]
            stack = OwnBias(stack, None, torch.stack(rows))
        if any(WEIGHT in one for one in own):
            numbers: list[Own] = [_named(one) if WEIGHT in one else {} for one in own]
            stack = OwnModule(lambda: numbers, self._model.stored(f"{path}{WEIGHT}").dtype, stack)
        assert stack is not None
        return stack


def _added(own: Mapping[str, Tensor]) -> Tensor | None:
    """What the biases of one adapter add to a module's output; None for nothing, or beside a weight."""
    return None if WEIGHT in own or not own else torch.stack(list(own.values())).sum(0)


def _named(own: Mapping[str, Tensor]) -> Own:
    """As functional_call names them."""
    return {end.removeprefix("."): tensor for end, tensor in own.items()}
