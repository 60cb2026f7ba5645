"""How a base's linear layers are held in memory: as the files have them, or quantised while they are loaded.

Needs no torch. core/lora/quantised.py tells what the number formats are.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

from core.errors import InvalidConfig

NONE, NF4, INT8, FP8 = "none", "nf4", "int8", "fp8"
QUANTISATIONS = (NONE, NF4, INT8, FP8)
LABELS = {NONE: "full precision", NF4: "4 bits (NF4)", INT8: "8 bits (INT8)", FP8: "8 bits for speed (FP8)"}
# of one number, the scales of its block counted; FP8 is held for forward and for backward
_BITS = {NF4: 4 + 8 / 64 + 32 / (64 * 256), INT8: 8.0, FP8: 16.0}
EXTRA = "bitsandbytes is not installed; install it with: pip install 'lora-workbench[qlora]'"


def bytes_of_linear(numbers: int, quantisation: str, bytes_per_weight: float) -> float:
    """What so many numbers of linear layers take in memory, the few of their scales counted."""
    return numbers * (_BITS[quantisation] / 8 if quantisation in _BITS else bytes_per_weight)


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
