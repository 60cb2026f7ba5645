"""Attention with sinks, as gpt-oss has it, by torch's fused kernels.

A sink is a logit of each head that takes part in the softmax and brings no value. transformers computes it by
its eager attention alone, which keeps all scores of all heads. Here it is one more key: queries and keys get
a component that is 1 in each query and, in that key, the sink divided by the scale, so that their product is
the sink; its value is zero. Keys are filled up to a multiple of eight, which is what kernels read.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from core.errors import InvalidModel

NAME = "lora_workbench_sinks"
_UNKNOWN = ("softcap", "position_bias")  # what would change the scores
_ALIGNED = 8  # numbers, of the widths that kernels read


def sink_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [rows, heads, length, width], key and value with fewer heads or as many; s_aux [heads] are the
    sinks, the mask [rows, 1, length, keys] is added to the scores. Returns [rows, length, heads, width].

    Raises InvalidModel for scores that are changed in another way, or without sinks.
    """
    if s_aux is None or attention_mask is None or any(others.get(one) is not None for one in _UNKNOWN):
        raise InvalidModel(f"{type(module).__name__} has no attention that is plain but for its sinks.")
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    more = _ALIGNED - key.shape[2] % _ALIGNED
    out = F.scaled_dot_product_attention(
        _with_ones(query),
        _with_sink(key, s_aux / scale, more),
        F.pad(value, (0, 0, 0, more)),
        attn_mask=_with_columns(attention_mask, more).to(query.dtype).expand(-1, query.shape[1], -1, -1),
        scale=scale,
    )
    return out.transpose(1, 2).contiguous(), None


def sink_mask(*, dtype: torch.dtype = torch.float32, **how: Any) -> Tensor | None:
    """What is added to the scores, [rows, 1, length, keys] in `dtype`: transformers' eager mask, whose older
    versions copy a number from the host, which no CUDA graph captures. how: as for transformers' sdpa_mask().
    """
    kept = sdpa_mask(**{**how, "allow_is_causal_skip": False})
    if kept is None:
        return None
    mask = torch.zeros(kept.shape, device=kept.device, dtype=dtype)
    return mask.masked_fill_(~kept, torch.finfo(dtype).min)


def _with_ones(query: Tensor) -> Tensor:
    """One more component, which is 1, filled up to what kernels read."""
    one = torch.zeros(_ALIGNED, device=query.device, dtype=query.dtype)
    one[:1] = 1.0  # [0] would copy the number from the host
    return torch.cat([query, one.expand(*query.shape[:-1], -1)], dim=-1)


def _with_sink(key: Tensor, sinks: Tensor, more: int) -> Tensor:
    """As many more keys, the first of which has the sinks [heads] in the component that is added."""
    rows, heads, _, width = key.shape
    added = key.new_zeros(rows, heads, more, width + _ALIGNED)
    added[:, :, 0, width] = sinks.to(key.dtype)
    return torch.cat([F.pad(key, (0, _ALIGNED)), added], dim=2)


def _with_columns(mask: Tensor, more: int) -> Tensor:
    """What is added to the scores of the keys that were added: nothing to the sink's, all others are left
    out.
    """
    columns = torch.full((more,), torch.finfo(mask.dtype).min, device=mask.device, dtype=mask.dtype)
    columns[:1] = 0.0
    return torch.cat([mask, columns.expand(*mask.shape[:-1], -1)], dim=-1)


AttentionInterface.register(NAME, sink_attention)
AttentionMaskInterface.register(NAME, sink_mask)
