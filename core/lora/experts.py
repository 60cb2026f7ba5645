"""What is told of the experts of a mixture, where all of a layer are stored as one tensor: they are no linear
layers, so adapters are on them only where that is chosen.

Works on names and shapes alone and needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from core.lora.config import LoraConfig
from core.lora.expert_shapes import ExpertShape, chosen_experts
from core.lora.targets import LayerShapes, layer_number, on_layers

_EXPERTS = ".experts."


def about_experts(
    tensors: Mapping[str, Sequence[int]],
    layers: LayerShapes,
    fused: Mapping[str, ExpertShape],
    lora: LoraConfig | None = None,
) -> str:
    """A sentence on the experts that no choice of target modules reaches, and whether `lora` is on them;
    empty if there are none.

    tensors: shapes by name, as the files hold them. Files may hold each expert by itself where the model
    computes them as one, so what counts are the linear layers that there are in the end. fused: the
    parameters of experts that can have factors.
    """
    of_experts = {name: math.prod(shape) for name, shape in tensors.items() if _is_of_experts(name, shape)}
    reached = sum(math.prod(shape) for path, shape in layers.items() if _EXPERTS in f"{path}.")
    apart = sum(of_experts.values()) - reached
    if apart <= 0:
        return ""
    chosen = chosen_experts(fused, lora.parameter_names) if lora is not None else []
    if lora is not None and chosen:
        return _with_adapters(on_layers(chosen, lora), fused)
    numbers = {layer_number(name) for name in of_experts}
    whole = sum(math.prod(shape) for shape in tensors.values())
    when = "unless Experts (target_parameters) is chosen" if fused else "whatever is targeted"
    return (
        f"The experts of {len(numbers)} layers are computed as one tensor a layer and get no adapters, "
        f"{when}: {apart:,} of {whole:,} parameters ({apart / whole:.0%})."
    )


def _with_adapters(paths: Sequence[str], fused: Mapping[str, ExpertShape]) -> str:
    each = max(fused[path].experts for path in paths)
    return (
        f"Each of the {each} experts of {len({layer_number(path) for path in paths})} layers gets factors of "
        "its own and learns from the tokens alone that are sent to it. The router stays frozen."
    )


def _is_of_experts(name: str, shape: Sequence[int]) -> bool:
    """A weight of one expert, or of all experts of a layer; biases of linear layers are left to them."""
    return len(shape) > 2 or (len(shape) == 2 and _EXPERTS in name)
