"""Names of layers that PEFT takes for experts: it knows these models from releases of transformers in which
each expert was a layer of its own, and moves an adapter on such a name to the experts' parameters
(peft/utils/transformers_weight_conversion.py). What lies on a dense layer of that name is then left out.
"""

from __future__ import annotations

from collections.abc import Iterable

from transformers import conversion_mapping

_TAKEN = {"mixtral": ("gate", "w1", "w2", "w3"), "qwen2_moe": ("gate", "gate_proj", "up_proj", "down_proj")}
_KINDS = {"mixtral": "mixtral"} | getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {})


def taken_for_experts(model_type: str, paths: Iterable[str]) -> list[str]:
    """Those of an adapter's layers, by path, that PEFT does not put it on in a model of this type."""
    names = _TAKEN.get(str(_KINDS.get(model_type)), ())
    return [path for path in paths if path.rpartition(".")[2] in names]
