"""Factors on an input embedding, in an adapter's files: PEFT calls them lora_embedding_A [r, tokens] and
lora_embedding_B [width, r], and saves the base's own weight beside them. Needs no torch.
"""

from __future__ import annotations

from core.errors import InvalidAdapter
from core.files.safetensors_file import SafetensorsHeader, TensorEntry
from core.lora.kinds.lora import KIND as LORA
from core.lora.peft.own_head import PREFIX
from core.lora.wholes import WEIGHT, Wholes

COPY = ".base_layer.weight"
"""Behind the path of a module: the base's weight, which PEFT saves beside factors on an embedding."""


def copied_weights(header: SafetensorsHeader) -> list[TensorEntry]:
    """Weights of the base itself that PEFT saves beside factors on an embedding or a head."""
    held = {name for name in (_targeted(entry.name) for entry in header.tensors) if name}
    return [
        entry
        for entry in header.tensors
        if entry.name.endswith(COPY) and entry.name.removesuffix(COPY) in held
    ]


def _targeted(key: str) -> str:
    """The module of a factor on an embedding or a linear layer, with PEFT's prefix; else empty."""
    ends = (*LORA.embedding_names.values(), *LORA.peft_names.values())
    return next((key.removesuffix(f".{end}") for end in ends if key.endswith(f".{end}")), "")


def embedding_in(header: SafetensorsHeader) -> str:
    """The path of the embedding that has factors; empty if none has."""
    end = f".{LORA.embedding_names['A']}"
    keys = (entry.name for entry in header.tensors if entry.name.endswith(end))
    return next(keys, "").removeprefix(PREFIX).removesuffix(end)


def embedding_shape(path: str, wholes: Wholes) -> tuple[int, int]:
    """Tokens and width of the embedding that has factors. Raises InvalidAdapter where it can have none."""
    if path != wholes.embedding:
        raise InvalidAdapter(
            f"It adapts the embedding {path[:120]}; of this base only {wholes.embedding or 'linear layers'} "
            "can have factors."
        )
    if wholes.tied:
        raise InvalidAdapter(
            f"It adapts the input embedding ({path[:120]}), which in this base is the output head, too "
            "(tied): merged, it would change both. Train it again without the embedding among its "
            "target_modules."
        )
    tokens, width = wholes.shapes[f"{path}{WEIGHT}"]
    return tokens, width
