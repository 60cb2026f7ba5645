"""What a base takes in memory, worked out from its files without reading a weight."""

from __future__ import annotations

import math
from pathlib import Path

from core.base_model.files import stored_tensors
from core.base_model.quantisation import bytes_of_linear, in_few_bits
from core.base_model.skeleton import skeleton


def held_bytes(folder: Path, quantisation: str, bytes_per_weight: int, parts: int = 1) -> int:
    """Bytes of all its parameters: of a quantised one the linear layers but for the head in few bits. parts:
    over how many cards the layers are laid out, of one of them.
    """
    found, numbers = skeleton(folder), sum(entry.count for _, entry in stored_tensors(folder).values())
    linear = list(in_few_bits(found.shapes, found.head, quantisation).values())
    layers = sum(bytes_of_linear(shape, quantisation, bytes_per_weight, parts) for shape in linear)
    return layers + (numbers - sum(map(math.prod, linear))) * bytes_per_weight
