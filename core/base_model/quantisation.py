"""How a base's linear layers are held in memory: as the files have them, or quantised while they are loaded.

Needs no torch. core/lora/quantised.py tells what the number formats are.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Mapping

from core.errors import InvalidConfig
from core.lora.targets import layer_number

NONE, NF4, INT8, FP8 = "none", "nf4", "int8", "fp8"
QUANTISATIONS = (NONE, NF4, INT8, FP8)
LABELS = {NONE: "full precision", NF4: "4 bits (NF4)", INT8: "8 bits (INT8)", FP8: "8 bits for speed (FP8)"}
_FLOAT32 = 4
_BLOCK, _NESTED_BLOCK = 64, 256  # as core/lora/quantised.py has them
_NF4_CODE = 256 * _FLOAT32 + _FLOAT32  # of the scales, and their mean
_FP8_STEP = 16  # of which both widths have to be multiples for the hardware to multiply
EXTRA = "bitsandbytes is not installed; install it with: pip install 'lora-workbench[qlora]'"


def in_few_bits(
    shapes: Mapping[str, tuple[int, int]], head: str | None, quantisation: str
) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear layers that a base holds in few bits, by path; shapes: (in, out) of all.

    All but the output head. In FP8 neither those of other widths than the hardware takes, nor those of the
    last decoder layer: what is rounded there goes into the logits as it is. Of 2.6 % that rounding all layers
    adds to the starter's loss the last of 30 makes 1.1 % (GSM8K, before training).
    """
    if quantisation == NONE:
        return {}
    held = {path: (outs, ins) for path, (ins, outs) in shapes.items() if path != head}
    if quantisation != FP8:
        return held
    numbers = [number for path in held if (number := layer_number(path)) is not None]
    last = max(numbers) if len(set(numbers)) > 1 else None
    return {
        path: shape
        for path, shape in held.items()
        if (last is None or layer_number(path) != last) and not any(width % _FP8_STEP for width in shape)
    }


def bytes_of_linear(shape: tuple[int, int], quantisation: str, bytes_per_weight: int, parts: int = 1) -> int:
    """What a linear layer of W [out, in] takes in memory, its bias not counted. parts: over how many
    processes it is laid out, of the first of them; FSDP2 divides each tensor by its first dimension.
    """
    outputs, inputs = shape

    def part(count: int) -> int:
        return -(-count // parts)

    if quantisation == NF4:
        blocks = -(-outputs * inputs // _BLOCK)
        nested = -(-blocks // _NESTED_BLOCK)
        return part(-(-outputs * inputs // 2)) + part(blocks) + part(nested) * _FLOAT32 + _NF4_CODE
    if quantisation == NONE:
        return part(outputs) * inputs * bytes_per_weight
    copies = 2 if quantisation == FP8 else 1  # for forward and for backward
    return part(outputs) * (copies * inputs + _FLOAT32)


def plain_encoder(name: str) -> str:
    """What is said where a base without a head that writes text is to be quantised."""
    return (
        f"{name} has no head that writes text. Such bases are small and held in full precision alone: choose "
        "quantisation=none."
    )


def plain_on_the_general_way(name: str) -> str:
    """What is said where a base that is computed by transformers' own passes is to be quantised."""
    return (
        f"{name} is computed the general way, by transformers' own passes, and is held in full precision "
        "alone there: choose quantisation=none."
    )


def bitsandbytes_version() -> str:
    """Of the library that is here; empty if it is not."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return ""
    return importlib.metadata.version("bitsandbytes")


def require_quantising(quantisation: str) -> None:
    """Raise InvalidConfig if a base cannot be held so here, with what to do."""
    if quantisation not in QUANTISATIONS:
        raise InvalidConfig(f"quantisation must be one of {', '.join(QUANTISATIONS)}, not {quantisation!r}.")
    if quantisation not in (NONE, FP8) and not bitsandbytes_version():
        raise InvalidConfig(
            f"quantisation={quantisation} holds the base in {LABELS[quantisation]} by bitsandbytes. {EXTRA}, "
            "or choose quantisation=none."
        )
