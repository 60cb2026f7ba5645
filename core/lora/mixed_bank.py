"""Adapters of any kinds side by side on one model, to compute with: chats, servers, comparisons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from core.lora.adapter import AdapterWeights
from core.lora.bank import AdapterBank, Layers
from core.lora.expert_layer import ExpertParameter
from core.lora.kinds import ADAPTER_KINDS, AdapterKind
from core.lora.stack import AdapterStack, MixedStack
from core.lora.tiles import in_tiles
from core.lora.whole_slots import WholeSlots
from core.lora.whole_stack import in_use


class MixedBank(nn.Module):
    """Adapters of any kinds under one numbering of slots, to compute with and not to train: a bank for each
    kind, in which the slots of the others are the plain base.
    """

    def __init__(
        self,
        layers: Layers,
        targets: Sequence[str],
        slots: int,
        ranks: Mapping[str, int],
        dtype: torch.dtype | None = None,
    ) -> None:
        """ranks gives the kinds that there is room for, by name, and the largest rank of each; dtype as in
        AdapterBank.
        """
        super().__init__()
        self._layers, self.ranks = {path: layers[path] for path in targets}, dict(ranks)
        self.slots = slots
        self._banks = {
            name: AdapterBank(
                layers, _possible(self._layers, kind), slots, ranks[name], kind=kind, dtype=dtype
            )
            for name, kind in ADAPTER_KINDS.all().items()
            if name in ranks
        }
        self._modules.update(self._banks)
        self.requires_grad_(False)
        self._factors: dict[str, AdapterStack | MixedStack] = {
            path: stacks[0] if len(stacks) == 1 else MixedStack(stacks)
            for path in targets
            if (stacks := [one.factors[path] for one in self._banks.values() if path in one.factors])
        }
        self._wholes = WholeSlots(layers, slots, self._layers, self._factors)

    def load(self, slot: int, adapter: AdapterWeights) -> None:
        """Copy an adapter into `slot`; layers it does not target become the plain base there."""
        adapter = adapter.answering()
        for name, bank in self._banks.items():
            if name == adapter.kind:
                bank.load(slot, adapter)
            else:
                bank.clear(slot)
        if adapter.wholes or self.has_wholes(slot):
            self._wholes.take(slot, adapter)

    def has_room_for(self, adapter: AdapterWeights) -> bool:
        """Whether load() can take an adapter of this kind and rank."""
        adapter = adapter.answering()
        fits = adapter.highest_rank <= self.ranks.get(adapter.kind, 0)
        return fits and not set(adapter.layers) - set(self._layers)

    def has_wholes(self, slot: int) -> bool:
        """Whether the adapter in `slot` has whole parameters of its own. What computes with them is built for
        them: whoever has captured a pass must not load another in their place, but take a new bank.
        """
        return slot in self._wholes.own

    @contextmanager
    def use(self, slots: Tensor | None = None) -> Iterator[None]:
        """As AdapterBank.use()."""
        wholes = self._wholes
        with in_tiles(slots, self.slots), in_use(wholes.places, wholes.stacks, slots, wholes.own_modules):
            yield

    def is_on(self, module: nn.Module) -> bool:
        """As AdapterBank.is_on()."""
        return any(place is module for place in self._wholes.places.values())


Bank = AdapterBank | MixedBank


def _possible(layers: Layers, kind: AdapterKind) -> list[str]:
    """The paths of those layers that this kind can be on."""
    return [
        path for path, layer in layers.items() if kind.takes_experts or not isinstance(layer, ExpertParameter)
    ]


def loaded_bank(layers: Layers, adapters: Sequence[AdapterWeights | None]) -> MixedBank:
    """A bank that holds these adapters in order, one a slot, to compute with and not to train.

    None stands for the plain base.
    """
    given = {slot: adapter.answering() for slot, adapter in enumerate(adapters) if adapter is not None}
    targeted = {path for adapter in given.values() for path in adapter.layers}
    # In the model's order, in which the factors of layers with one input lie behind each other; an embedding
    # is none of the layers.
    paths = [*(path for path in layers if path in targeted), *sorted(targeted.difference(layers))]
    ranks: dict[str, int] = {}
    for adapter in given.values():
        ranks[adapter.kind] = max(ranks.get(adapter.kind, 0), adapter.highest_rank)
    bank = MixedBank(layers, paths, len(adapters), ranks)  # its slots start as the plain base
    for slot, adapter in given.items():
        bank.load(slot, adapter)
    return bank
