"""Values in adapter_config.json, one by one: what kinds check their own settings with. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from core.errors import InvalidAdapter
from core.lora.peft.patterns import compiled

CONFIG_NAME = "adapter_config.json"
MODULE_NAME = re.compile(r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")
_MOST_EXPRESSIONS = 100  # people write a few; each is tried on each layer


def check_number(
    config: Mapping[str, Any],
    key: str,
    low: float,
    high: float,
    *,
    whole: bool = False,
    default: float | None = None,
) -> None:
    """Raise InvalidAdapter unless the setting is a number in this range, or left out where it may be."""
    if key not in config and default is None:
        raise InvalidAdapter(f"{CONFIG_NAME} does not say {key}.")
    value = config.get(key, default)
    if not is_number(value) or (whole and not isinstance(value, int)) or not low <= value <= high:
        expected = "a whole number" if whole else "a number"
        raise InvalidAdapter(
            f"{CONFIG_NAME}: {key} is {str(value)[:40]}; expected {expected} from {low} to {high}."
        )


def check_pattern(config: Mapping[str, Any], key: str, low: float, high: float) -> None:
    """Raise InvalidAdapter unless the setting maps module names, or regular expressions for them, to numbers
    in this range.
    """
    pattern = config.get(key) or {}
    if not isinstance(pattern, dict) or not all(
        is_number(value) and low <= value <= high for value in pattern.values()
    ):
        raise InvalidAdapter(
            f"{CONFIG_NAME}: {key} must map names of modules to numbers from {low} to {high}."
        )
    expressions = [name for name in pattern if not MODULE_NAME.match(name)]
    if len(expressions) > _MOST_EXPRESSIONS:
        raise InvalidAdapter(
            f"{CONFIG_NAME}: {key} holds {len(expressions)} regular expressions; at most "
            f"{_MOST_EXPRESSIONS} are accepted."
        )
    for name in expressions:
        compiled(name)


def check_switch(config: Mapping[str, Any], key: str) -> None:
    """Raise InvalidAdapter unless the setting is true, false or left out."""
    if not isinstance(config.get(key, False), bool):
        raise InvalidAdapter(f"{CONFIG_NAME}: {key} must be true or false.")


def is_number(value: object) -> bool:
    """Whether JSON gave a number; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
