"""What llguidance makes of a JSON schema, put right before it sees it: what it would take without end, or
wrongly, is refused, and what asks for nothing is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from core.errors import InvalidInput

_MOST_REMAINDERS = 50_000
"""Each remainder of a multipleOf is a state of its automaton: a million take five seconds and 200 MB."""

_ANY_TEXT = frozenset({"binary", "byte", "base64", "password", "file-path", "directory-path", "path"})
"""Formats of OpenAPI's and pydantic's that say what a text is for; llguidance refuses whichever it does not
know.
"""
_VALUES = ("const", "enum", "default", "examples")


def without_what_asks_for_nothing(part: Any) -> Any:
    """A schema, or a part of one, without formats that any text has, and without uniqueItems: false."""
    if isinstance(part, list):
        return [without_what_asks_for_nothing(one) for one in part]
    if not isinstance(part, dict):
        return part
    return {
        key: value if key in _VALUES else without_what_asks_for_nothing(value)
        for key, value in part.items()
        if not (key == "uniqueItems" and value is False)
        and not (key == "format" and isinstance(value, str) and value in _ANY_TEXT)
    }


def require_bounded(schema: dict[str, Any]) -> None:
    """Raise InvalidInput where this schema's numbers would stall whoever makes its grammar, or would not be
    kept to.
    """
    remainders = 1
    for one in _schemas(schema):
        remainders = math.lcm(remainders, _digits(one.get("multipleOf")))
        if remainders > _MOST_REMAINDERS:
            raise InvalidInput(
                f"An answer cannot be held to this JSON schema: multipleOf is {one['multipleOf']!r:.40}; "
                f"of all in it the least common multiple, without decimal points, may be {_MOST_REMAINDERS}."
            )
        _require_zero_left_out(one)


def _schemas(part: Any) -> Iterator[dict[str, Any]]:
    """All objects in it: values such as a default's are as good as never like schemas."""
    waiting = [part]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _digits(number: Any) -> int:
    """A number's digits as a whole number: 25 of 0.25; 1 of what is none."""
    if isinstance(number, int):
        return max(1, abs(number))
    if not isinstance(number, float) or not math.isfinite(number):
        return 1
    digits = Decimal(repr(number)).normalize().as_tuple()
    whole = int("".join(map(str, digits.digits)))
    return max(1, whole * 10 ** max(0, int(digits.exponent)))


def _require_zero_left_out(schema: dict[str, Any]) -> None:
    """llguidance 1.9 lets 0 through where it is excluded and the other bound is less than 1 away."""
    for excluded, others, example in (
        ("exclusiveMinimum", ("maximum", "exclusiveMaximum"), "minimum: 0.000001"),
        ("exclusiveMaximum", ("minimum", "exclusiveMinimum"), "maximum: -0.000001"),
    ):
        near = [one for name in others if _is_fraction(one := schema.get(name))]
        if near and schema.get("type") != "integer" and _is_zero(schema.get(excluded)):
            raise InvalidInput(
                f"An answer cannot be held to this JSON schema: {excluded} 0 is not kept to so near to "
                f"{near[0]}; say from where on, such as {example}."
            )


def _is_zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == 0


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float) and 0 < abs(value) < 1
