"""Attention of one new token of each row, as an operator that torch.compile and CUDA graphs take as it is."""

from __future__ import annotations

import torch
from torch import Tensor

WIDEST = 256
"""Of a key or value, that the kernel holds in registers."""


@torch.library.custom_op("lora_workbench::attend_one_token", mutates_args=())
def attend_one_token(
    query: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scale: float, window: int
) -> Tensor:
    """query [rows, heads, width] of the tokens at positions [rows] int64; keys and values [rows, kv_heads,
    capacity, width], which hold those of these tokens already. window: how many places a row sees; 0 for all.

    Returns [rows, heads, value_width]. On CUDA only.
    """
    from core.base_model.one_token_kernels import attend  # needs Triton, which CUDA builds of torch bring

    out = query.new_empty(*query.shape[:2], values.shape[3])
    attend(query, keys, values, positions, scale, window, out)
    return out


@attend_one_token.register_fake
def _(query, keys, values, positions, scale, window):  # type: ignore[no-untyped-def]
    return query.new_empty(*query.shape[:2], values.shape[3])
