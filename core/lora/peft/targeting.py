"""Which modules adapter_config.json speaks of, by PEFT's own rules, and how exactly these are named to it.

The rules are those of check_target_module_exists in peft.tuners.tuners_utils and of get_pattern_key in
peft.utils.other (PEFT 0.21). Needs no torch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from core.errors import InvalidAdapter
from core.lora.module_names import is_among
from core.lora.peft.config_checks import CONFIG_NAME, MODULE_NAME
from core.lora.peft.patterns import compiled, fully_matches
from core.lora.targets import layer_number

V = TypeVar("V")
_ALL_LINEAR = "all-linear"
_IN_A_LAYER = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")  # the first number counts: experts have one too


def check_targeting(config: Mapping[str, Any]) -> None:
    """Raise InvalidAdapter unless the settings that choose modules are sound."""
    targets = config.get("target_modules")
    if isinstance(targets, str):
        if not _is_all_linear(targets):
            compiled(targets)
        if config.get("layers_to_transform") is not None:
            raise InvalidAdapter(
                f"{CONFIG_NAME}: layers_to_transform goes with a list of target_modules only, as in PEFT."
            )
    elif not (targets or config.get("target_parameters")) or not _are_names(targets):
        raise InvalidAdapter(
            f"{CONFIG_NAME}: target_modules must be a list of module names, a regular expression or "
            "all-linear."
        )
    excluded = config.get("exclude_modules") or []
    if isinstance(excluded, str):
        compiled(excluded)
    elif not _are_names(excluded):
        raise InvalidAdapter(
            f"{CONFIG_NAME}: exclude_modules must be a list of module names or a regular expression."
        )
    _check_layers(config)


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and len(one) < 512 for one in value)


def _is_all_linear(targets: object) -> bool:
    return isinstance(targets, str) and targets.lower() == _ALL_LINEAR


def _check_layers(config: Mapping[str, Any]) -> None:
    chosen = config.get("layers_to_transform")
    numbers = chosen if isinstance(chosen, list) else [0 if chosen is None else chosen]
    if not all(type(number) is int and 0 <= number < 10_000 for number in numbers):
        raise InvalidAdapter(f"{CONFIG_NAME}: layers_to_transform must be layer numbers.")
    patterns = config.get("layers_pattern") or []
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not _are_names(patterns):
        raise InvalidAdapter(f"{CONFIG_NAME}: layers_pattern must be the name of the list of layers.")
    if patterns and chosen is None:
        raise InvalidAdapter(f"{CONFIG_NAME}: layers_pattern goes with layers_to_transform only, as in PEFT.")
    for pattern in patterns:
        compiled(pattern)


def targeted_paths(config: Mapping[str, Any], paths: Sequence[str], head: str | None) -> list[str]:
    """Which of these module paths of a base with this output head a checked configuration targets.

    Raises InvalidAdapter if it targets what holds them: PEFT cannot have made such an adapter.
    """
    targets = config["target_modules"]
    if isinstance(targets, str) and not _is_all_linear(targets):
        holders = {path.rpartition(".")[0] for path in paths} - {""}
        if meant := next((one for one in sorted(holders) if _is_targeted(config, one, head)), None):
            raise InvalidAdapter(
                f"{CONFIG_NAME}: target_modules {targets[:80]!r} also names {meant}, which is no "
                "linear layer."
            )
    return [path for path in paths if not _is_excluded(config, path) and _is_targeted(config, path, head)]


def _is_excluded(config: Mapping[str, Any], path: str) -> bool:
    """Also what is saved whole has no factors beside, nor has what is in it."""
    if any(f".{name}." in f".{path}." for name in config.get("modules_to_save") or []):
        return True
    excluded = config.get("exclude_modules") or []
    return fully_matches(excluded, path) if isinstance(excluded, str) else is_among(path, excluded)


def _is_targeted(config: Mapping[str, Any], path: str, head: str | None) -> bool:
    targets = config["target_modules"]
    if isinstance(targets, str):
        return path != head if _is_all_linear(targets) else fully_matches(targets, path)
    if path in targets:
        return True  # PEFT does not look at the layers then
    return is_among(path, targets) and _is_in_chosen_layers(config, path)


def _is_in_chosen_layers(config: Mapping[str, Any], path: str) -> bool:
    chosen = config.get("layers_to_transform")
    if chosen is None or chosen == []:
        return True
    number = _number_in(path, config.get("layers_pattern") or [])
    return number in (chosen if isinstance(chosen, list) else [chosen])


def _number_in(path: str, patterns: str | Sequence[str]) -> int | None:
    """The number of the decoder layer; with patterns, in a list of layers that one of them names."""
    if not patterns:
        match = _IN_A_LAYER.match(path)
        return int(match["idx"]) if match else None
    parts = path.split(".")
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for at in range(1, len(parts) - 1):
            before = ".".join(parts[:at])
            if parts[at].isdecimal() and fully_matches(rf"(?:|.*\.)(?:{pattern})", before):
                return int(parts[at])
    return None


def stated_for(pattern: Mapping[str, V], path: str, default: V) -> V:
    """What the first key that speaks of the module gives, as PEFT reads rank_pattern and alpha_pattern: keys
    are regular expressions for the end of a path, so a dot stands for any character.
    """
    return next((value for key, value in pattern.items() if _speaks_of(key, path)), default)


def _speaks_of(key: str, path: str) -> bool:
    if not _is_plain(key):
        return fully_matches(rf"(.*\.)?({key})", path)
    start = len(path) - len(key)
    if start < 0 or (start > 0 and path[start - 1] != "."):
        return False
    end = path[start:]
    if key == end or key.count(".") == end.count("."):
        return key == end
    return all(k in (".", p) for k, p in zip(key, end, strict=True))


@functools.lru_cache(4096)
def _is_plain(key: str) -> bool:
    return bool(MODULE_NAME.match(key))


def naming(held: Collection[str], modules: Collection[str]) -> dict[str, Any]:
    """target_modules and layers_to_transform for an adapter that holds exactly these layers.

    The last names of the modules, in all layers or in those that it holds, if in a base with these `modules`
    that means no others; full paths if it would, or if nobody knows the base's modules.
    """
    names = sorted({path.rpartition(".")[2] for path in held})
    numbers = sorted({number for path in held if (number := layer_number(path)) is not None})
    for layers in (None, numbers):
        settings = {"target_modules": names, "layers_to_transform": layers}
        if modules and set(targeted_paths(settings, list(modules), None)) == set(held):
            return settings
    return {"target_modules": sorted(held), "layers_to_transform": None}


def exceptions(values: Mapping[str, V], default: V) -> dict[str, V]:
    """rank_pattern or alpha_pattern: what differs from the default, by full path; values by module path.

    Longer paths come first, since PEFT takes the first key that fits the end of a path.
    """
    others = {path: value for path, value in values.items() if value != default}
    for path in sorted(values):
        if stated_for(others, path, default) != values[path]:
            others[path] = values[path]
    return dict(sorted(others.items(), key=lambda pair: (-len(pair[0]), pair[0])))
