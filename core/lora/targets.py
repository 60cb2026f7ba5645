"""Which layers an adapter targets, and what that costs. Works on shapes alone and needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.errors import InvalidConfig
from core.lora.config import ALL_LINEAR, LoraConfig
from core.lora.kinds import ADAPTER_KINDS
from core.lora.module_names import ends_with, is_among

LayerShapes = Mapping[str, tuple[int, int]]
"""(in_features, out_features) by module path."""


def select_targets(paths: Sequence[str], config: LoraConfig, head: str | None) -> list[str]:
    """The module paths that an adapter of this configuration has: by name, in the chosen decoder layers.

    Raises InvalidConfig for a name, a pattern or a layer number that matches nothing, with what there is.
    """
    chosen = _named(paths, config.target_names, head)
    for name in config.pattern_names:
        if not any(ends_with(path, name) for path in chosen):
            raise InvalidConfig(
                f"A pattern speaks of {name!r}, which is none of the targeted modules: {_names(chosen)}."
            )
    if config.layer_numbers is None:
        return chosen
    there = {number for path in chosen if (number := layer_number(path)) is not None}
    if unknown := sorted(config.layer_numbers - there):
        raise InvalidConfig(
            f"layers_to_transform names layer {unknown[0]}; this model's layers are 0 to {max(there)}."
        )
    return [path for path in chosen if layer_number(path) in config.layer_numbers]


def _named(paths: Sequence[str], names: Sequence[str], head: str | None) -> list[str]:
    if ALL_LINEAR in names:
        if len(names) > 1:
            raise InvalidConfig("all-linear already targets every linear layer; give it alone.")
        return [path for path in paths if path != head]
    for name in names:
        if not any(ends_with(path, name) for path in paths):
            raise InvalidConfig(
                f"No layer of this model is called {name!r}. It has: {_names(paths)} (or all-linear)."
            )
    return [path for path in paths if is_among(path, names)]


def _names(paths: Sequence[str]) -> str:
    return ", ".join(sorted({path.rpartition(".")[2] for path in paths}))


def layer_number(path: str) -> int | None:
    """The decoder layer a module path lies in, counted from 0; None outside of them."""
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def trainable_parameter_count(shapes: LayerShapes, targets: Sequence[str], config: LoraConfig) -> int:
    """Numbers that an adapter of this configuration trains: of LoRA r·(in + out), summed over the targeted
    layers (arXiv 2106.09685, section 4.2).
    """
    kind = ADAPTER_KINDS.get(config.kind)
    return kind.parameter_count((*shapes[path], config.rank_of(path)) for path in targets)
