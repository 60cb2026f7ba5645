"""What an answer is asked of: an adapter's files and the base it was made for, or a blend of several."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.base_model.load import ResidentBase
from core.base_model.quantisation import NONE
from core.base_model.source import BaseSource
from core.errors import WrongBase
from core.lora.adapter import AdapterWeights


@dataclass(frozen=True)
class AdapterSource:
    """An adapter to answer with: its files and the base it was made for."""

    name: str
    folder: Callable[[], Path]
    """Gives its files, after a look whether they are still those of `digest`. Called when they are read, not
    for an adapter that is in memory already.
    """
    digest: str
    base_fingerprint: str
    base_name: str
    weights: AdapterWeights | None = None
    """Its factors, where they are not read from `folder`: those of a run that is still training."""

    whole: bool = False
    """Whether it replaces whole parameters of the base."""


@dataclass(frozen=True)
class BlendSource(AdapterSource):
    """The weighted sum of several adapters. Its digest is that of their digests and weights."""

    parts: tuple[tuple[AdapterSource, float], ...] = field(kw_only=True)


def blend(name: str, parts: Sequence[tuple[AdapterSource, float]]) -> AdapterSource | None:
    """Who answers for a weighted sum: where one adapter is left with the weight 1 it itself, and where none
    is the plain base (None).
    """
    counting = tuple((source, weight) for source, weight in parts if weight != 0)
    if not counting:
        return None
    first, weight = counting[0]
    if len(counting) == 1 and weight == 1:
        return first
    said = "\n".join(f"{source.digest} {weight!r}" for source, weight in counting)
    digest = hashlib.sha256(said.encode()).hexdigest()
    base = (first.base_fingerprint, first.base_name)
    return BlendSource(name, first.folder, digest, *base, parts=counting)


def parts_of(source: AdapterSource | None) -> tuple[tuple[AdapterSource, float], ...]:
    """The adapters that an answer comes from, each with its weight; nothing of the plain base."""
    if isinstance(source, BlendSource):
        return source.parts
    return () if source is None else ((source, 1.0),)


def weights_told(source: AdapterSource | None, base: ResidentBase) -> dict[str, Any]:
    """Which weights answer: the base's fingerprint and each adapter's digest and weight, as plain values."""
    parts = [{"name": one.name, "digest": one.digest, "weight": weight} for one, weight in parts_of(source)]
    told = {"base": base.fingerprint, "base_name": base.name, "parts": parts}
    return told if base.quantisation == NONE else told | {"quantisation": base.quantisation}


def require_same_base(adapter: AdapterSource, base: BaseSource) -> None:
    """Raise WrongBase, with both names, unless `adapter` was made for exactly `base`."""
    for one, _ in parts_of(adapter):
        if one.base_fingerprint != base.fingerprint:
            raise WrongBase(
                f"The adapter {one.name} was made for {one.base_name} ({one.base_fingerprint[:12]}), "
                f"not for {base.name} ({base.fingerprint[:12]}). On another base its answers would be "
                "noise; choose its own base."
            )
