"""The experts of a mixture, where all of a layer are stored as one tensor: no linear layers, so no adapters.

Works on names and shapes alone and needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from core.lora.targets import LayerShapes, layer_number

_EXPERTS = ".experts."


def experts_without_adapters(tensors: Mapping[str, Sequence[int]], layers: LayerShapes) -> str:
    """A sentence on the parameters that no choice of target modules reaches; empty if there are none.

    tensors: shapes by name, as the files hold them. Files may hold each expert by itself where the model
    computes them as one, so what counts are the linear layers that there are in the end.
    """
    of_experts = {name: math.prod(shape) for name, shape in tensors.items() if _is_of_experts(name, shape)}
    reached = sum(math.prod(shape) for path, shape in layers.items() if _EXPERTS in f"{path}.")
    fused = sum(of_experts.values()) - reached
    if fused <= 0:
        return ""
    numbers = {layer_number(name) for name in of_experts}
    whole = sum(math.prod(shape) for shape in tensors.values())
    return (
        f"The experts of {len(numbers)} layers are computed as one tensor a layer and get no adapters, "
        f"whatever is targeted: {fused:,} of {whole:,} parameters ({fused / whole:.0%})."
    )


def _is_of_experts(name: str, shape: Sequence[int]) -> bool:
    """A weight of one expert, or of all experts of a layer; biases of linear layers are left to them."""
    return len(shape) > 2 or (len(shape) == 2 and _EXPERTS in name)
