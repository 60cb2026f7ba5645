"""Which whole parameters a configuration trains, where its kind trains such. Needs no torch."""

from __future__ import annotations

from collections.abc import Collection

from core.errors import InvalidConfig
from core.lora.config import ALL_LINEAR, LoraConfig
from core.lora.module_names import is_among
from core.lora.targets import on_layers


def chosen_parameters(paths: Collection[str], config: LoraConfig) -> list[str]:
    """Of these parameters, by their paths in the model: all, or those of the modules that target_modules
    names, in all decoder layers or in the chosen ones.

    Raises InvalidConfig for a name or a layer number that matches nothing, with what there is.
    """
    chosen = list(paths)
    if config.target_names != (ALL_LINEAR,):
        for name in config.target_names:
            if not any(is_among(module_of(path), [name]) for path in paths):
                there = sorted({module_of(path).rpartition(".")[2] for path in paths})
                raise InvalidConfig(
                    f"No module of this model with weights is called {name!r}. It has: {', '.join(there)} "
                    "(or all-linear, which is all of them)."
                )
        chosen = [path for path in chosen if is_among(module_of(path), config.target_names)]
    return on_layers(chosen, config)


def module_of(path: str) -> str:
    """The path of the module that has this parameter."""
    return path.rpartition(".")[0]
