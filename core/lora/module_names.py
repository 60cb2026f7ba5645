"""Which modules a name speaks of that people or files give: PEFT's rule.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

V = TypeVar("V")


def ends_with(path: str, name: str) -> bool:
    """Whether `name` is the module path or its last parts, as PEFT matches target_modules."""
    return path == name or path.endswith(f".{name}")


def is_among(path: str, names: Iterable[str]) -> bool:
    """Whether one of the names speaks of the module at this path."""
    return any(ends_with(path, name) for name in names)


def by_pattern(pattern: Mapping[str, V], path: str, default: V) -> V:
    """What the first name that speaks of the module gives."""
    return next((value for name, value in pattern.items() if ends_with(path, name)), default)
