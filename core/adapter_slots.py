"""Adapters ready to answer: eight in slots of one bank, more in memory, each read from its files once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from weakref import WeakSet, WeakValueDictionary

import psutil

from core.adapter_source import AdapterSource, BlendSource
from core.base_model.load import ResidentBase
from core.combine.blending import blended
from core.combine.combining import Part
from core.errors import WorkbenchError
from core.generate.running import RunningBatch
from core.lora.adapter import AdapterWeights
from core.lora.kinds.lora import KIND as LORA
from core.lora.mixed_bank import MixedBank
from core.lora.peft.files import load_adapter

ADAPTER_SLOTS = 8  # adapters kept ready beside the base; slot 0 is the plain base
_FIRST_RANK = 16
_LARGER_THAN_NEEDED = 4  # times: then a bank whose wide blends have gone is made anew
_MEMORY_SHARE = 1 / 16  # of the machine's memory, for adapters that are in no slot


class AdapterMemory:
    """Adapters that were read, by digest. Those used least lately go when all take more than is allowed."""

    def __init__(self, most_bytes: int | None = None) -> None:
        """By default a sixteenth of the machine's memory."""
        total = int(psutil.virtual_memory().total)
        self.most_bytes = int(total * _MEMORY_SHARE) if most_bytes is None else most_bytes
        self._kept: dict[str, AdapterWeights] = {}  # the oldest use first
        self._alive: WeakValueDictionary[str, AdapterWeights] = WeakValueDictionary()

    def of(self, source: AdapterSource, base: ResidentBase) -> AdapterWeights:
        """What the source's adapter answers with, read only where nobody has it in memory.

        Raises what its folder() and load_adapter() raise.
        """
        if source.weights is not None:
            return source.weights.answering()
        found = self.there(source.digest)
        if found is None:
            read = load_adapter(source.folder(), base.layer_shapes, base.head, base.wholes)
            found = self._alive[source.digest] = read.answering()
        self._kept.pop(source.digest, None)
        if bytes_of(found) <= self.most_bytes:
            self._kept[source.digest] = found
            self._bound()
        return found

    def there(self, digest: str) -> AdapterWeights | None:
        """What is in memory with this digest: kept here, in a slot, or because a row waits with it."""
        return self._alive.get(digest)

    def lend(self, digest: str, weights: AdapterWeights) -> None:
        """Have weights found for as long as somebody else keeps them."""
        self._alive[digest] = weights

    @property
    def bytes(self) -> int:
        """What the kept ones take."""
        return sum(bytes_of(one) for one in self._kept.values())

    def _bound(self) -> None:
        while self.bytes > self.most_bytes:
            del self._kept[next(iter(self._kept))]


def bytes_of(adapter: AdapterWeights) -> int:
    """What an adapter's numbers take in memory."""
    layers = (one for layer in adapter.layers.values() for one in layer.tensors.values())
    return sum(one.nbytes for one in (*layers, *adapter.head.values(), *adapter.whole.values()))


def require_lora_in_parts(name: str, weights: AdapterWeights | None, base: ResidentBase) -> None:
    """Raise WorkbenchError where a base lies in parts, for an adapter that reads its weights beside a pass or
    stands in their place; weights: None for one that replaces them.
    """
    plain = weights is not None and weights.kind == LORA.name and not (weights.wholes or weights.experts)
    if base.parts > 1 and not plain:
        raise WorkbenchError(
            f"{name} is more than LoRA on linear layers, and {base.name} lies in parts on {base.parts} cards "
            "for a run now, where only such adapters answer. Ask again when the run has ended."
        )


@dataclass
class AdapterSlots:
    """Adapters and blends ready to answer, in one bank; the least recently used makes room."""

    base: ResidentBase
    memory: AdapterMemory = field(default_factory=AdapterMemory)
    batches: WeakSet[RunningBatch] = field(default_factory=WeakSet)
    """That compute with them."""
    bank: MixedBank = field(init=False)
    loaded: dict[str, tuple[int, AdapterWeights]] = field(
        default_factory=dict
    )  # digest → slot, oldest use first
    _blends: set[str] = field(default_factory=set)  # digests of those in slots

    def __post_init__(self) -> None:
        self.bank = self._new_bank({LORA.name: _FIRST_RANK})

    def _new_bank(self, ranks: Mapping[str, int], more: Iterable[str] = ()) -> MixedBank:
        """more: what adapters have factors on beside linear layers."""
        targets = list(dict.fromkeys([*self.base.layers, *more]))
        return MixedBank(self.base.layers, targets, ADAPTER_SLOTS + 1, ranks, dtype=self.base.dtype)

    def seat(self, source: AdapterSource) -> Callable[[], int | None]:
        """Read an adapter. What is returned has it in a slot when a row with it begins, and gives the slot:
        None while rows compute with all the others.
        """
        weights = self.weights(source)
        is_blend = isinstance(source, BlendSource)
        return lambda: self._slot_of(source.digest, weights, is_blend)

    def forget_blends(self, keep: Collection[str] = ()) -> None:
        """Let go of the blends that no row computes with but those of these digests: a slider that moves
        leaves nothing behind.
        """
        busy = self._busy()
        for digest in self._blends - set(keep):
            if self.loaded[digest][0] not in busy:
                del self.loaded[digest]
                self._blends.discard(digest)

    def weights(self, source: AdapterSource) -> AdapterWeights:
        """What it answers with: what is there, what is read now, or the sum of a blend's parts.

        Raises InvalidAdapter, with the reason, for a blend of what does not add up, and what
        require_lora_in_parts() raises.
        """
        if source.digest in self.loaded:
            return self.loaded[source.digest][1]
        if not isinstance(source, BlendSource):
            read = self.memory.of(source, self.base)
            require_lora_in_parts(source.name, read, self.base)
            return read
        found = self.memory.there(source.digest)
        if found is None:
            parts = [Part(one.name, self.weights(one), weight) for one, weight in source.parts]
            found = blended(parts)
            self.memory.lend(source.digest, found)
        return found

    def _slot_of(self, digest: str, weights: AdapterWeights, is_blend: bool) -> int | None:
        if digest in self.loaded:
            self.loaded[digest] = self.loaded.pop(digest)
        elif (slot := self._free_slot()) is None:
            return None
        else:
            self._load(digest, weights, slot)
            if is_blend:
                self._blends.add(digest)
        return self.loaded[digest][0]

    def _load(self, digest: str, weights: AdapterWeights, slot: int) -> None:
        ranks = self._ranks_with(weights)
        # A pass that was captured computes with the whole parameters that were there, and with no others.
        fits = self.bank.has_room_for(weights) and not (weights.wholes or self.bank.has_wholes(slot))
        if not fits or ranks[LORA.name] < self.bank.ranks[LORA.name]:
            held_ones = [weights, *(held for _, held in self.loaded.values())]
            targeted = (path for one in held_ones for path in one.layers)
            self.bank = self._new_bank(ranks, targeted)
            for used, held in self.loaded.values():
                self.bank.load(used, held)
        self.bank.load(slot, weights)
        self.loaded[digest] = (slot, weights)

    def _ranks_with(self, weights: AdapterWeights) -> dict[str, int]:
        """What the bank has room for, and these weights need. Where wide blends that have gone left LoRA far
        more than anybody needs, it is what is needed: each row would pay for it.
        """
        ranks = {**self.bank.ranks, weights.kind: self.bank.ranks.get(weights.kind, 0)}
        ranks[weights.kind] = max(ranks[weights.kind], weights.highest_rank)
        held = [weights, *(one for _, one in self.loaded.values())]
        needed = max([_FIRST_RANK, *(one.highest_rank for one in held if one.kind == LORA.name)])
        if ranks[LORA.name] > _LARGER_THAN_NEEDED * needed:
            ranks[LORA.name] = needed
        return ranks

    def _free_slot(self) -> int | None:
        """One that is empty, or else that of the adapter used least lately of those that no row computes
        with.
        """
        used = {slot for slot, _ in self.loaded.values()}
        free = next((slot for slot in range(1, ADAPTER_SLOTS + 1) if slot not in used), None)
        if free is not None:
            return free
        busy = self._busy()
        oldest = next((digest for digest, (slot, _) in self.loaded.items() if slot not in busy), None)
        if oldest is None:
            return None
        self._blends.discard(oldest)
        return self.loaded.pop(oldest)[0]

    def _busy(self) -> set[int]:
        """Slots that rows compute with."""
        return set().union(*(batch.slots_in_use for batch in self.batches))
