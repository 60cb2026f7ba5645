"""Schemas whose numbers would stall the engine or not be kept to, and what asks for nothing in one."""

import json

import pytest

from core.errors import InvalidInput
from core.generate.config import GenerationConfig
from core.generate.grammar import require_possible
from core.generate.schema_limits import without_what_asks_for_nothing


def _possible(schema):
    require_possible(GenerationConfig(json_schema=json.dumps(schema)))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 20_000_003},
        {"type": "number", "multipleOf": 1e9},
        {"type": "integer", "multipleOf": 10**400},
        {"type": "number", "multipleOf": 0.20000003},
        {"allOf": [{"type": "integer", "multipleOf": 997}, {"type": "integer", "multipleOf": 991}]},
        {"type": "object", "properties": {"default": {"type": "integer", "multipleOf": 1_000_003}}},
    ],
)
def test_steps_that_would_take_an_automaton_of_a_million_states_are_refused(schema):
    with pytest.raises(InvalidInput, match=r"multipleOf is .* least common multiple"):
        _possible(schema)


def test_steps_of_every_day_are_taken():
    _possible(
        {
            "type": "object",
            "properties": {
                "price": {"type": "number", "multipleOf": 0.01},
                "grams": {"type": "integer", "multipleOf": 250},
                "minutes": {"type": "integer", "multipleOf": 15},
            },
            "default": {"price": 1},
        }
    )


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
        {"type": "number", "exclusiveMinimum": 0.0, "exclusiveMaximum": 0.01},
        {"type": "array", "items": {"type": "number", "exclusiveMaximum": 0, "exclusiveMinimum": -0.01}},
    ],
)
def test_an_excluded_nought_that_would_come_all_the_same_is_refused(schema):
    with pytest.raises(InvalidInput, match=r"exclusiveM.* 0 is not kept to so near to"):
        _possible(schema)
    _possible({"type": "number", "exclusiveMinimum": 0, "maximum": 1})


def test_what_asks_for_nothing_is_no_reason_to_refuse():
    texts = {"type": "object", "properties": {"key": {"type": "string", "format": "password"}}}
    _possible(texts | {"uniqueItems": False})
    kept = {"const": {"format": "password", "uniqueItems": False}, "format": "date"}
    assert without_what_asks_for_nothing(kept) == kept
    for asked in ({"type": "array", "uniqueItems": True}, {"type": "string", "format": "ipvanyaddress"}):
        with pytest.raises(InvalidInput, match="cannot be held to this JSON schema"):
            _possible(asked)
