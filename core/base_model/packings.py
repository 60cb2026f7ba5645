"""In which formats weights may be packed in a repository, and still become a base: they are made plain once,
when it is added (core/base_model/unpacking.py). Needs no torch.
"""

from __future__ import annotations

from typing import Any

BITSANDBYTES, FP8, COMPRESSED, MXFP4 = "bitsandbytes", "fp8", "compressed-tensors", "mxfp4"
PACKINGS = {
    BITSANDBYTES: "4 bits by bitsandbytes",
    FP8: "8-bit floats (fp8) with scales",
    COMPRESSED: "8-bit floats (fp8) with scales, by compressed-tensors",
    MXFP4: "4-bit floats with a scale for each 32 (mxfp4)",
}
"""What each is, by its quant_method, which is the source of such a base, too."""
_FP8_FORMATS = ("float-quantized", "naive-quantized")


def packed_as(config: dict[str, Any]) -> str:
    """How a repository's weights are packed, of what can be made plain; empty for all others."""
    how = config.get("quantization_config")
    if not isinstance(how, dict):
        return ""
    method = how.get("quant_method")
    if method == BITSANDBYTES:
        return BITSANDBYTES if how.get("load_in_4bit") is True else ""
    if method == COMPRESSED:
        return COMPRESSED if _is_fp8(how) else ""
    return str(method) if method in (FP8, MXFP4) else ""


def _is_fp8(how: dict[str, Any]) -> bool:
    """Whether compressed-tensors holds all that it packs as 8-bit floats."""
    groups = how.get("config_groups")
    weights = [one.get("weights") for one in groups.values()] if isinstance(groups, dict) else []
    told = [(one.get("type"), one.get("num_bits")) for one in weights if isinstance(one, dict)]
    return how.get("format") in _FP8_FORMATS and bool(told) and set(told) == {("float", 8)}


def made_plain(source: str, dtype: str) -> str:
    """What is said of a base that was made plain, with the dtype that it has now; empty for all others."""
    if source not in PACKINGS:
        return ""
    return (
        f"its files held {PACKINGS[source]}; each weight was made plain once and is {dtype} here, in the "
        f"number it stood for. It takes the memory of a plain base, and what is merged is written in {dtype}."
    )
