"""What a plan needs to know of a base, and what the base takes in memory by that. Needs no torch."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.base_model.quantisation import bytes_of_linear, in_few_bits
from core.lora.targets import LayerShapes, layer_number
from core.lora.wholes import Wholes
from core.train.sharding import LAYERS_AT_ONCE


@dataclass(frozen=True)
class BaseShape:
    """What the estimate needs to know of a base model."""

    layer_shapes: LayerShapes
    head: str | None
    parameters: int
    layers: int
    hidden_size: int
    vocab_size: int
    wholes: Wholes = field(default_factory=Wholes)
    """What of it adapters can have of their own."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """What its config.json says."""
    tensors: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """Shapes of all its parameters by name, as its files hold them; empty where they are not known."""
    may_pack: bool = True
    """Whether the way on which it is computed lets rows share a block."""

    def held_bytes(self, quantisation: str, width: int) -> int:
        """What all of it takes, with `width` bytes a weight: of a quantised one the linear layers but for the
        head in few bits, the rest as it is, and one layer's weight as it computes.
        """
        packed = self._packed(quantisation)
        plain = self.parameters - sum(map(math.prod, packed.values()))
        few = sum(bytes_of_linear(shape, quantisation, width) for shape in packed.values())
        return few + plain * width + self.made_bytes(quantisation, width)

    def part_bytes(self, quantisation: str, width: int, parts: int) -> int:
        """What a card takes that has its part of every decoder layer, and all that stands in none of them.

        FSDP2 divides a parameter by its first dimension; the first card has the larger rest.
        """
        packed, others = self._packed(quantisation), self._others(quantisation)
        few = sum(
            bytes_of_linear(shape, quantisation, width, 1 if layer_number(path) is None else parts)
            for path, shape in packed.items()
        )
        plain = [shape for layer in others.values() for shape in layer]
        part = sum(math.ceil(first / parts) * math.prod(rest) for first, *rest in plain)
        around = self.parameters - sum(map(math.prod, [*plain, *packed.values()]))
        return few + (part + around) * width

    def gathered_bytes(self, quantisation: str, width: int) -> int:
        """What a card holds beside its part while it computes: the layers that are whole at one time, and of
        a quantised one a layer's weight as it computes.
        """
        packed, layers = self._packed(quantisation), defaultdict[int | None, int](int)
        for path, shape in packed.items():
            layers[layer_number(path)] += bytes_of_linear(shape, quantisation, width)
        for number, shapes in self._others(quantisation).items():
            layers[number] += sum(map(math.prod, shapes)) * width
        layers.pop(None, None)
        return LAYERS_AT_ONCE * max(layers.values(), default=0) + self.made_bytes(quantisation, width)

    def _packed(self, quantisation: str) -> dict[str, tuple[int, int]]:
        """(out, in) of the linear layers that are held in few bits, by path."""
        return in_few_bits(self.layer_shapes, self.head, quantisation)

    def made_bytes(self, quantisation: str, width: int) -> int:
        """Of a quantised base the largest weight that is made for a product; of another nothing."""
        return width * max(map(math.prod, self._packed(quantisation).values()), default=0)

    def _others(self, quantisation: str) -> dict[int, list[Sequence[int]]]:
        """Of each decoder layer the shapes of its parameters that are held as they are; of the linear layers'
        alone, where others are not known.
        """
        known = self.tensors or {
            f"{path}.weight": (outs, ins) for path, (ins, outs) in self.layer_shapes.items()
        }
        packed = {_inside(f"{path}.weight") for path in self._packed(quantisation)}
        found: dict[int, list[Sequence[int]]] = {}
        for path, shape in known.items():
            if (number := layer_number(path)) is not None and _inside(path) not in packed:
                found.setdefault(number, []).append(shape)
        return found


def _inside(path: str) -> str:
    """A path from the number of the decoder layer on: files of some bases leave out what is before it."""
    names = path.split(".")
    at = next((at for at, name in enumerate(names) if name.isdigit()), 0)
    return ".".join(names[at:])
