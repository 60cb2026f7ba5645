"""The attention of every resident base: one function, which does what the pass at hand needs.

transformers calls it in place of its own. What it attends to is set on the attention modules from outside, as
a bank of adapters is set on the linear layers: nothing for a plain causal pass, or one of

- Packed: rows packed into blocks, where each segment sees itself alone (training);
- Prefill: the tokens of prompts, written to a cache on the way (decoding);
- OneToken: one new token for each row, beside the cache (decoding).

So no pass builds a mask over a whole block, and no layer needs to know its number, which lets compiled layers
share one graph. Padding masks are not used: rows are padded on the right, where causal attention never looks.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, PreTrainedModel

from core.base_model.one_token_attention import WIDEST, attend_one_token
from core.errors import InvalidModel

NAME = "lora_workbench"
# torch 2.11 takes fewer key heads without being told; later releases ask for it.
_FEWER_KEY_HEADS: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)
_CAUSAL_KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_VARLEN_DTYPES = (torch.float16, torch.bfloat16)
_PASS = "attention_pass"  # the attribute of an attention module that holds what the pass at hand attends to


@dataclass(frozen=True)
class Packed:
    """Segments laid end to end over all rows of a batch, each causal and alone."""

    bounds: Sequence[int]
    """Where segments begin, and where the last ends, counted over the tokens of all rows."""
    offsets: Tensor | None = None
    """The same as int32 on an accelerator, where one kernel handles all segments.

    May repeat its last entry.
    """
    longest: int = 0


@dataclass(frozen=True)
class Prefill:
    """New tokens of every row at the same positions, `start` and on.

    Caches are [rows, kv_heads, capacity, head_dim].
    """

    keys: Tensor
    values: Tensor
    start: int


@dataclass(frozen=True)
class OneToken:
    """One new token for each row at its own position [rows]; seen [rows, 1, 1, capacity] is true up to and
    with it.
    """

    keys: Tensor
    values: Tensor
    rows: Tensor
    positions: Tensor
    seen: Tensor


Pass = Packed | Prefill | OneToken


@dataclass(frozen=True)
class Attending:
    """One attention module and what a cache for it holds."""

    module: nn.Module
    kv_heads: int
    key_width: int
    value_width: int


_found: list[Attending] | None = None  # where find_attention_modules collects


@contextmanager
def attend(modules: Sequence[Attending], passes: Sequence[Pass]) -> Iterator[None]:
    """Within the block, module i attends as passes[i] says."""
    for one, how in zip(modules, passes, strict=True):
        setattr(one.module, _PASS, how)
    try:
        yield
    finally:
        for one in modules:
            setattr(one.module, _PASS, None)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """query [rows, heads, length, width]; key and value may have fewer heads.

    Returns [rows, length, heads, width].
    """
    if _found is not None:
        _notice(module, key, value, others)
    one = getattr(module, _PASS, None)
    if isinstance(one, OneToken):  # no match statement: torch.compile does not follow one
        return _one_token(one, query, key, value, scaling, sliding_window), None
    if isinstance(one, Packed):
        out = _packed(one, query, key, value, scaling, sliding_window)
    elif isinstance(one, Prefill):
        out = _prefill(one, query, key, value, scaling, sliding_window)
    else:
        out = _causal(query, key, value, scaling, sliding_window)
    return out.transpose(1, 2).contiguous(), None


def _causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
    """Every row causal over its own length."""
    length = query.shape[2]
    mask = (
        _window_mask(length, length, window, query.device) if window is not None and window < length else None
    )
    grouped = query.shape[1] != key.shape[1]
    if grouped and (
        mask is not None or query.device.type == "cpu"
    ):  # only CUDA's kernels take fewer key heads as they are
        key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], dim=1) for one in (key, value))
        grouped = False
    if mask is None and query.is_cuda:
        with sdpa_kernel(_CAUSAL_KERNELS, set_priority=True):
            return F.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scale, enable_gqa=grouped
            )
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def _window_mask(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """[queries, keys]: causal, aligned at the end, and no further back than the window."""
    at = torch.arange(keys - queries, keys, device=device)[:, None]
    other = torch.arange(keys, device=device)[None]
    mask = other <= at
    return mask if window is None else mask & (other > at - window)


def _packed(
    one: Packed, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None
) -> Tensor:
    rows, heads, length, _ = query.shape
    if one.offsets is not None and query.dtype not in _VARLEN_DTYPES:
        return _masked(one.offsets, query, key, value, scale, window)
    if one.offsets is not None:
        q, k, v = (
            x.transpose(1, 2).reshape(rows * length, x.shape[1], x.shape[3]) for x in (query, key, value)
        )
        back = -1 if window is None else window - 1
        out = varlen_attn(
            q,
            k,
            v,
            one.offsets,
            one.offsets,
            one.longest,
            one.longest,
            scale=scale,
            window_size=(back, 0),
            **_FEWER_KEY_HEADS,
        )
        assert isinstance(out, Tensor)  # a pair only if asked for
        return out.view(rows, length, heads, -1).transpose(1, 2)
    # Elsewhere one call a segment: its work is the sum of the squared lengths, a masked call's the square of
    # the block's.
    q, k, v = (
        x.transpose(0, 1).reshape(1, x.shape[1], rows * length, x.shape[3]) for x in (query, key, value)
    )
    parts = [
        _causal(q[:, :, start:stop], k[:, :, start:stop], v[:, :, start:stop], scale, window)
        for start, stop in itertools.pairwise(one.bounds)
    ]
    return torch.cat(parts, dim=2).view(heads, rows, length, -1).transpose(0, 1)


def _masked(
    offsets: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None
) -> Tensor:
    """Segments by a mask over each block, for dtypes that the variable-length kernel does not take."""
    rows, heads, length, _ = query.shape
    segment = torch.searchsorted(offsets, torch.arange(rows * length, device=query.device), right=True).view(
        rows, 1, length
    )
    mask = (segment[..., None] == segment[:, :, None]) & _window_mask(length, length, window, query.device)
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _prefill(
    one: Prefill, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None
) -> Tensor:
    length, stop = query.shape[2], one.start + query.shape[2]
    one.keys[:, :, one.start : stop] = key
    one.values[:, :, one.start : stop] = value
    if one.start == 0:
        return _causal(query, key, value, scale, window)
    groups = query.shape[1] // key.shape[1]
    keys, values = (x[:, :, :stop].repeat_interleave(groups, dim=1) for x in (one.keys, one.values))
    return F.scaled_dot_product_attention(
        query, keys, values, attn_mask=_window_mask(length, stop, window, query.device), scale=scale
    )


def _one_token(
    one: OneToken, query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None
) -> Tensor:
    rows, heads, _, width = query.shape
    one.keys[one.rows, :, one.positions] = key[:, :, 0]
    one.values[one.rows, :, one.positions] = value[:, :, 0]
    if query.is_cuda and max(width, value.shape[3]) <= WIDEST:
        how = scale or width**-0.5, window or 0
        return attend_one_token(query[:, :, 0], one.keys, one.values, one.positions, *how)[:, None]
    seen = one.seen
    if window is not None and window < seen.shape[-1]:
        at = torch.arange(seen.shape[-1], device=seen.device)
        seen = seen & (at > one.positions[:, None] - window)[:, None, None]
    # The heads that share a key head stand in for a length, since all of them see the same: no key is read
    # twice.
    folded = query.view(rows, key.shape[1], -1, width)
    out = F.scaled_dot_product_attention(folded, one.keys, one.values, attn_mask=seen, scale=scale)
    return out.reshape(rows, 1, heads, -1)


AttentionInterface.register(NAME, attention)


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Have a model attend by what transformers calls `name`; one whose attention is code of its own goes on
    with that.
    """
    if model._can_set_attn_implementation():
        model.set_attn_implementation(name)


def set_experts(model: PreTrainedModel, name: str) -> None:
    """Have a model compute its experts by what transformers calls `name`; one without such, or whose experts
    are code of their own, goes on as it is.
    """
    if name and model._can_set_experts_implementation():
        model.set_experts_implementation(name)


def find_attention_modules(model: PreTrainedModel) -> list[Attending]:
    """The modules that attend, in order, seen in a pass over two tokens.

    Raises InvalidModel for a model whose attention this function cannot stand for: layers of another kind
    (state space, linear attention), capped scores, or sinks.
    """
    global _found
    _found = []
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=model.device), use_cache=False)
        found = _found
    finally:
        _found = None
    layers = int(model.config.get_text_config().num_hidden_layers)
    if len(found) != layers:
        raise InvalidModel(
            f"{type(model).__name__} has {layers} layers, of which {len(found)} are causal attention that "
            "another function can compute. Models with state-space or linear-attention layers, with several "
            "attentions in a layer, or whose attention is code of their own (ALiBi, for example) cannot be "
            "used yet."
        )
    return found


def _notice(module: nn.Module, key: Tensor, value: Tensor, others: dict[str, Any]) -> None:
    assert _found is not None
    for name in ("softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:
            raise InvalidModel(
                f"{type(module).__name__} uses {name} in its attention, which cannot be used yet."
            )
    _found.append(Attending(module, key.shape[1], key.shape[3], value.shape[3]))
