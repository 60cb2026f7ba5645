"""transformers' own caches, for rows that come and go: what each row has read lies in a cache of one row, and
rows that go on together are joined into one, filled up on the left.

Keys and values of a shorter row stand at the end, behind zeros that a mask hides, as where transformers pads
a batch on the left. States that do not grow (of convolutions and of recurrent layers) only lie side by side.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import cache_utils
from transformers.cache_utils import Cache

from core.errors import InvalidModel

_KNOWN = (
    "DummyLayer",
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "LinearAttentionLayer",
)
"""The kinds of a layer's cache in transformers of which all that they hold is known."""
_ARGUMENTS = (
    "cache",
    "past_key_values",
    "cache_params",
)  # what a forward pass calls it, by release and family
_GROWING, _STATES = ("keys", "values"), ("conv_states", "recurrent_states")
_FLAGS = ("has_previous_state", "is_conv_states_initialized", "is_recurrent_states_initialized")
_PROBES = (8, 16)  # tokens


@torch.no_grad()
def read_rows(inner: nn.Module, ids: Tensor) -> tuple[Tensor, list[Cache]]:
    """What `inner` (the whole model, or the part below its head) gives for ids [rows, length], and the cache
    of each row.

    Raises InvalidModel if it keeps what it has read in another way than in a cache of a known kind.
    """
    out = inner(input_ids=ids, use_cache=True)
    cache = next((one for one in out.values() if isinstance(one, Cache)), None)
    if cache is None:
        raise InvalidModel(f"A {type(inner).__name__} keeps what it has read in no cache of transformers'.")
    _require_known(inner, cache)
    return out[0], parted(cache, [ids.shape[1]] * len(ids))


@torch.no_grad()
def read_tokens(model: nn.Module, cache: Cache, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
    """Logits [rows, vocabulary] behind one more token of each row, tokens [rows], where rows have read
    `lengths` so far; `cache`, which joined() made of them, takes it in.
    """
    inputs: dict[str, Any] = {"input_ids": tokens[:, None], "use_cache": True}
    takes = inspect.signature(model.forward).parameters
    if "position_ids" in takes:
        inputs["position_ids"] = torch.tensor(lengths, device=tokens.device)[:, None]
    longest = max(lengths)
    if min(lengths) < longest and _grows(cache):
        places = torch.arange(longest + 1, device=tokens.device)
        first = torch.tensor([longest - length for length in lengths], device=tokens.device)
        inputs["attention_mask"] = (places >= first[:, None]).long()
    inputs[next(name for name in _ARGUMENTS if name in takes)] = cache
    logits: Tensor = model(**inputs).logits
    return logits[:, -1]


def joined(caches: Sequence[Cache], lengths: Sequence[int]) -> Cache:
    """One cache of the rows of several of one row each, which have read `lengths` tokens; nothing is shared
    with them.
    """
    made = copy.copy(caches[0])
    made.layers = [
        _joined_layer(layers, max(lengths)) for layers in zip(*(one.layers for one in caches), strict=True)
    ]
    return made


def parted(cache: Cache, lengths: Sequence[int]) -> list[Cache]:
    """The rows of a cache, each in one of its own without what fills it up; views of its tensors."""
    found = []
    for row, length in enumerate(lengths):
        one = copy.copy(cache)
        one.layers = [_parted_layer(layer, row, length) for layer in cache.layers]
        found.append(one)
    return found


def cache_bytes(model: nn.Module) -> tuple[int, int]:
    """What one row takes in a cache: for each token, and whatever its length is."""
    device = next(model.parameters()).device
    taken = []
    for count in _PROBES:
        _, (cache,) = read_rows(model, torch.zeros((1, count), dtype=torch.long, device=device))
        taken.append(sum(one.numel() * one.element_size() for one in _tensors(cache)))
    a_token = (taken[1] - taken[0]) // (_PROBES[1] - _PROBES[0])
    return a_token, taken[0] - a_token * _PROBES[0]


def _require_known(inner: nn.Module, cache: Cache) -> None:
    known = {getattr(cache_utils, name, None) for name in _KNOWN}
    other = {type(layer).__name__ for layer in cache.layers if type(layer) not in known}
    if other:
        raise InvalidModel(
            f"A {type(inner).__name__} keeps what it has read in a {sorted(other)[0]}, which rows cannot "
            "share."
        )


def _grows(cache: Cache) -> bool:
    """Whether it holds anything by token, which a mask can hide."""
    return any(getattr(layer, "keys", None) is not None for layer in cache.layers)


def _joined_layer(layers: Sequence[Any], longest: int) -> Any:
    def side_by_side(name: str, key: int | None) -> Tensor:
        return torch.cat([_of(layer, name, key) for layer in layers])

    def filled_up(name: str, key: int | None) -> Tensor:
        found = [_of(layer, name, key) for layer in layers]
        width = max(one.shape[-2] for one in found)
        return torch.cat([F.pad(one, (0, 0, width - one.shape[-2], 0)) for one in found])

    return _remade(layers[0], longest, filled_up, side_by_side)


def _parted_layer(layer: Any, row: int, length: int) -> Any:
    def own(name: str, key: int | None) -> Tensor:
        return _of(layer, name, key)[row : row + 1]

    def without_filling(name: str, key: int | None) -> Tensor:
        found = own(name, key)
        return found[..., max(0, found.shape[-2] - length) :, :]

    return _remade(layer, length, without_filling, own)


Make = Callable[[str, "int | None"], Tensor]
"""What stands for the tensor of this name, or for that under a key of the dictionary of this name."""


def _remade(layer: Any, length: int, growing: Make, state: Make) -> Any:
    """A layer's cache like this one with other tensors, that has seen so many tokens."""
    made = copy.copy(layer)
    for names, make in ((_GROWING, growing), (_STATES, state)):
        for name in names:
            before = getattr(layer, name, None)
            if isinstance(before, Mapping):
                setattr(
                    made, name, {key: None if one is None else make(name, key) for key, one in before.items()}
                )
            elif isinstance(before, Tensor) and before.numel():
                setattr(made, name, make(name, None))
    for name in _FLAGS:
        if isinstance(getattr(layer, name, None), Mapping):
            setattr(made, name, dict(getattr(layer, name)))
    if hasattr(layer, "cumulative_length"):
        made.cumulative_length = length
    return made


def _of(layer: Any, name: str, key: int | None) -> Tensor:
    found: Any = getattr(layer, name)
    tensor: Tensor = found if key is None else found[key]
    return tensor


def _tensors(cache: Cache) -> list[Tensor]:
    held = [getattr(layer, name, None) for layer in cache.layers for name in (*_GROWING, *_STATES)]
    inner = [list(one.values()) if isinstance(one, Mapping) else [one] for one in held]
    return [one for several in inner for one in several if one is not None]
