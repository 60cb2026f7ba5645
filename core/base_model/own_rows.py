"""Rows that are answered on the general way: each reads its prompt by itself, and those under way take their
next tokens together, beside transformers' own caches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from core.base_model.own_cache import joined, parted, read_rows, read_tokens
from core.base_model.way import Way

Using = Callable[[Sequence[int]], AbstractContextManager[None]]
"""A context in which the model computes with the adapters of the rows at these places."""


class OwnRows:
    """Places for rows, and what each of them has read."""

    def __init__(self, model: PreTrainedModel, way: Way, places: int, using: Using | None = None) -> None:
        self._model, self._way = model, way
        self._using: Using = using or (lambda _: nullcontext())
        self._caches: list[Cache | None] = [None] * places
        self._lengths = [0] * places
        self._joined: dict[tuple[int, ...], Cache] = {}  # of places whose rows go on together

    def read(self, inner: nn.Module, ids: Tensor) -> Tensor:
        """Have the first places read ids [rows, length] from the beginning; what `inner` (the model, or its
        part below the head) gives for them.
        """
        self._part()
        places = range(len(ids))
        with self._using(places):
            out, caches = read_rows(inner, ids)
        for place, cache in zip(places, caches, strict=True):
            self._caches[place], self._lengths[place] = cache, ids.shape[1]
        return out

    def read_at(self, place: int, ids: Tensor, inner: nn.Module | None = None) -> Tensor:
        """The same for the row at one place, ids [length]."""
        self._part()
        with self._using([place]):
            out, (self._caches[place],) = read_rows(inner or self._model, ids[None])
        self._lengths[place] = len(ids)
        return out[0]

    def step(self, tokens: Tensor, history: Callable[[int], Tensor]) -> Tensor:
        """Logits [rows, vocabulary] behind one more token of each of the first rows, tokens [rows]. `history`
        gives the ids of the row at a place, this token among them.
        """
        places = range(len(tokens))
        anew = [at for at in places if self._lengths[at] == self._way.reread_at > 0]
        found = {at: self.read_at(at, history(at))[-1] for at in anew}
        rest = [at for at in places if at not in found]
        for group in [tuple(rest)] if self._way.together else [(at,) for at in rest]:
            if group:
                found |= zip(group, self._step(group, tokens), strict=True)
        return torch.stack([found[at] for at in places])

    def _step(self, group: tuple[int, ...], tokens: Tensor) -> Tensor:
        lengths = [self._lengths[at] for at in group]
        cache = self._cache_of(group, lengths)
        with self._using(group):
            logits = read_tokens(self._model, cache, tokens[list(group)], lengths)
        for at in group:
            self._lengths[at] += 1
        return logits

    def _cache_of(self, group: tuple[int, ...], lengths: Sequence[int]) -> Cache:
        """The one that these rows share; theirs are joined where they went on in other company before."""
        if group not in self._joined:
            self._part(group)
            own = [one for at in group if (one := self._caches[at]) is not None]
            self._joined[group] = joined(own, lengths)
            for at in group:
                self._caches[at] = None
        return self._joined[group]

    def _part(self, places: Sequence[int] | None = None) -> None:
        """Give each row its own again, of those that share one with a row at these places (None: all)."""
        for group in list(self._joined):
            if places is None or set(group) & set(places):
                rows = parted(self._joined.pop(group), [self._lengths[at] for at in group])
                for at, cache in zip(group, rows, strict=True):
                    self._caches[at] = cache

    def take(self, other: OwnRows, rows: Sequence[int], first: int) -> None:
        """Go on with these rows of another, or of this one, in this order, from place `first` on."""
        other._part()
        self._part()
        taken = [(other._caches[at], other._lengths[at]) for at in rows]
        for place, (cache, length) in enumerate(taken, first):
            self._caches[place], self._lengths[place] = cache, length
