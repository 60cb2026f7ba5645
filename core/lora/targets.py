"""Which layers an adapter targets, and what that costs. Works on shapes alone and needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.config import ALL_LINEAR
from core.errors import InvalidConfig

LayerShapes = Mapping[str, tuple[int, int]]
"""(in_features, out_features) by module path."""


def select_targets(paths: Sequence[str], names: Sequence[str], head: str | None) -> list[str]:
    """The module paths that `names` target: all-linear (all but the head), last names or endings of paths.

    Raises InvalidConfig for a name that matches nothing, with the names there are.
    """
    if ALL_LINEAR in names:
        if len(names) > 1:
            raise InvalidConfig("all-linear already targets every linear layer; give it alone.")
        return [path for path in paths if path != head]
    for name in names:
        if not any(ends_with(path, name) for path in paths):
            there = sorted({path.rpartition(".")[2] for path in paths})
            raise InvalidConfig(f"No layer of this model is called {name!r}. It has: {', '.join(there)} (or all-linear).")
    return [path for path in paths if any(ends_with(path, name) for name in names)]


def ends_with(path: str, name: str) -> bool:
    """Whether `name` is the path or its last parts, as PEFT matches target_modules."""
    return path == name or path.endswith(f".{name}")


def trainable_parameter_count(shapes: LayerShapes, targets: Sequence[str], rank: int) -> int:
    """r·(in + out), summed over the targeted layers (arXiv 2106.09685, section 4.2)."""
    return sum(rank * sum(shapes[path]) for path in targets)
