"""What a plan needs to know of a base, and what the base takes in memory by that. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.base_model.quantisation import NONE, bytes_of_linear
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

    def held_bytes(self, quantisation: str, width: int) -> float:
        """What all of it takes, with `width` bytes a weight: of a quantised one the linear layers but for the
        head in few bits, the rest as it is, and one layer's weight as it computes.
        """
        sizes = [math.prod(shape) for path, shape in self.layer_shapes.items() if path != self.head]
        if quantisation == NONE or not sizes:
            return self.parameters * width
        linear, plain = sum(sizes), self.parameters - sum(sizes)
        return bytes_of_linear(linear, quantisation, width) + (plain + max(sizes)) * width

    def part_bytes(self, quantisation: str, width: int, parts: int) -> float:
        """What a card takes that has its part of every decoder layer, and all that stands in none of them.

        FSDP2 divides a parameter by its first dimension; the first card has the larger rest.
        """
        shapes = [shape for layer in self._decoder_layers() for shape in layer]
        around = self.parameters - sum(map(math.prod, shapes))
        part = sum(math.ceil(first / parts) * math.prod(rest) for first, *rest in shapes)
        return bytes_of_linear(part, quantisation, width) + around * width

    def gathered_bytes(self, width: int) -> float:
        """What a card holds beside its part while it computes: the layers that are whole at one time."""
        largest = max((sum(map(math.prod, layer)) for layer in self._decoder_layers()), default=0)
        return LAYERS_AT_ONCE * largest * width

    def _decoder_layers(self) -> list[list[Sequence[int]]]:
        """The shapes of the parameters of each; of the linear layers' alone, where others are not known."""
        found: dict[int, list[Sequence[int]]] = {}
        known = self.tensors or {path: (outs, ins) for path, (ins, outs) in self.layer_shapes.items()}
        for path, shape in known.items():
            if (number := layer_number(path)) is not None:
                found.setdefault(number, []).append(shape)
        return list(found.values())
