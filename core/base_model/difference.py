"""Why a base model is not the one that was meant: said with the first thing that differs. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.base_model.fingerprint import Manifest

SAME, ARCHITECTURE, SHAPES, WEIGHTS = "same", "architecture", "shapes", "weights"
_MOST_NAMED = 3


@dataclass(frozen=True)
class Difference:
    """What kind of difference it is, and in a sentence which."""

    kind: str
    sentence: str


def difference(wanted: Manifest, found: Manifest) -> Difference:
    """How `found` differs from the model that was `wanted`; the coarsest kind of difference is named."""
    if wanted.architecture != found.architecture:
        return Difference(
            ARCHITECTURE, f"Another architecture: {_fields(wanted.architecture, found.architecture)}."
        )
    there = {name: (dtype, shape, digest) for name, dtype, shape, digest in found.tensors}
    meant = {name: (dtype, shape, digest) for name, dtype, shape, digest in wanted.tensors}
    if missing := sorted(set(meant) - set(there)):
        return Difference(SHAPES, f"Tensors are missing: {_named(missing)}.")
    if extra := sorted(set(there) - set(meant)):
        return Difference(SHAPES, f"There are tensors that it does not have: {_named(extra)}.")
    other = [name for name in sorted(meant) if meant[name][:2] != there[name][:2]]
    if other:
        shown = [
            f"{name} is {_kind(*there[name][:2])} instead of {_kind(*meant[name][:2])}" for name in other[:1]
        ]
        return Difference(SHAPES, f"Other shapes or number formats: {shown[0]}{_more(other, 1)}.")
    changed = [name for name in sorted(meant) if meant[name][2] != there[name][2]]
    if not changed:
        return Difference(SAME, "The weights are the same.")
    count = f"{len(changed)} of {len(meant)} tensors"
    return Difference(WEIGHTS, f"The same shapes but other weights in {count}: {_named(changed)}.")


def _fields(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    names = [name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)]
    shown = [
        f"{name} is {found.get(name, 'not given')} instead of {wanted.get(name, 'not given')}"
        for name in names
    ]
    return f"{', '.join(shown[:_MOST_NAMED])}{_more(names, _MOST_NAMED)}"


def _kind(dtype: str, shape: tuple[int, ...]) -> str:
    return f"{dtype} {list(shape)}"


def _named(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_MOST_NAMED])}{_more(names, _MOST_NAMED)}"


def _more(names: Sequence[str], shown: int) -> str:
    return f" and {len(names) - shown} more" if len(names) > shown else ""
