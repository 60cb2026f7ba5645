"""One scale for all layers of an adapter, as servers such as vLLM have it: they take lora_alpha / r for every
layer and do not read rank_pattern or alpha_pattern.
"""

from __future__ import annotations

import math
from dataclasses import replace

from core.lora.adapter import AdapterWeights, LayerFactors
from core.lora.kinds.lora import KIND as LORA
from core.lora.scaling import scaling


def stated_scale(adapter: AdapterWeights) -> float:
    """The scale that lora_alpha and r alone give."""
    return scaling(adapter.alpha, adapter.rank, adapter.use_rslora)


def with_one_scale(adapter: AdapterWeights) -> AdapterWeights:
    """The same ΔW with the stated scale on each layer, what is more or less of it folded into B. What is no
    LoRA, or has one scale already, stays as it is.
    """
    if adapter.kind != LORA.name:
        return adapter
    scale, layers = stated_scale(adapter), adapter.low_rank()
    if all(math.isclose(one.scale, scale, rel_tol=1e-6) for one in layers.values()):
        return adapter
    folded = {
        path: LayerFactors(one.A, one.B.float() * (one.scale / scale), scale) for path, one in layers.items()
    }
    return replace(adapter, layers=folded, head=adapter.head_at(folded))
