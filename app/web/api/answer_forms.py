"""What clients want an answer held to, as options of a GenerationConfig: JSON, a pattern, some words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from app.web.api.openai_errors import bad, unsupported
from app.web.api.parameters import Body, mapping, require_known, text
from core.data.tool_calls import Tool
from core.errors import InvalidConfig
from core.generate.config import GenerationConfig

_ANY_OBJECT = {"type": "object"}
_OF_VLLM = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice"}
"""Names of vLLM before structured_outputs, and what they are called there."""
_NEUTRAL = dict.fromkeys(
    ("disable_any_whitespace", "disable_fallback", "disable_additional_properties"), (False,)
)
"""Of structured_outputs, values with which vLLM's clients ask for nothing."""
FORM_NAMES = frozenset({"structured_outputs", *_OF_VLLM})
"""What asks for one beside response_format, which is for chats alone."""


def openai_form(body: Body, tools: Sequence[Tool] = ()) -> dict[str, str]:
    """Of response_format, and of what vLLM's clients send; empty where nothing is asked for.

    Raises ApiError.
    """
    asked = [name for name in ("response_format", *sorted(FORM_NAMES)) if name in body]
    if len(asked) > 1:
        raise bad(asked[1], f"{' and '.join(asked)} are sent; an answer is held to one of them.")
    if not asked:
        return {}
    name = asked[0]
    found = _response_format(body) if name == "response_format" else _of_vllm(body, name)
    return _possible(found, name, tools)


def ollama_form(body: Body, tools: Sequence[Tool] = ()) -> dict[str, str]:
    """Of `format`: json for any object, or a schema. Raises ApiError."""
    sent = body.get("format", "")
    if sent == "":
        return {}
    if sent != "json" and not isinstance(sent, dict):
        raise bad("format", f"format must be json or a JSON schema, not {json.dumps(sent)[:80]}.")
    return _possible(_json(_ANY_OBJECT if sent == "json" else sent), "format", tools)


def _response_format(body: Body) -> dict[str, str]:
    asked = mapping(body, "response_format")
    kind = text(asked, "type")
    if kind == "json_schema":
        about = mapping(asked, "json_schema")
        require_known(about, {"schema", "name", "description", "strict"}, {}, "response_format.json_schema.")
        if "schema" not in about:
            raise bad("response_format", "response_format.json_schema.schema is missing: a JSON schema.")
        return _json(about["schema"])
    if kind not in ("text", "json_object"):
        said = f"response_format.type may be text, json_object or json_schema, not {kind[:80]}."
        raise unsupported("response_format", said)
    return _json(_ANY_OBJECT) if kind == "json_object" else {}


def _of_vllm(body: Body, name: str) -> dict[str, str]:
    asked = mapping(body, name) if name == "structured_outputs" else {_OF_VLLM[name]: body[name]}
    ways = {"json": _json, "regex": _pattern, "choice": _choice, "json_object": _any_object}
    require_known(asked, ways, _NEUTRAL, f"{name}.")
    found = [one for one in ways if one in asked]
    if len(found) != 1:
        raise bad(name, f"{name} must have one of {', '.join(ways)}.")
    return ways[found[0]](asked[found[0]])


def _json(schema: object) -> dict[str, str]:
    """A schema, which may be sent as its text."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False)
    except RecursionError as error:
        raise bad("schema", f"The JSON schema cannot be read: {error}.") from None
    if not text:
        raise bad("schema", "The JSON schema is empty, which would hold an answer to nothing; leave it out.")
    return {"json_schema": text}


def _pattern(sent: object) -> dict[str, str]:
    if not isinstance(sent, str) or not sent:
        raise bad("regex", f"The regex must be a text that is not empty, not {json.dumps(sent)[:80]}.")
    return {"pattern": sent}


def _any_object(sent: object) -> dict[str, str]:
    if sent is not True:
        raise bad("json_object", f"json_object must be true or left out, not {json.dumps(sent)[:80]}.")
    return _json(_ANY_OBJECT)


def _choice(sent: Any) -> dict[str, str]:
    if not isinstance(sent, list) or not sent or not all(isinstance(one, str) and one for one in sent):
        raise bad("choice", "The choice must be a list of texts, none of them empty.")
    return {"pattern": "|".join(map(re.escape, sent))}


def _possible(found: dict[str, str], name: str, tools: Sequence[Tool]) -> dict[str, str]:
    if found and tools:
        said = f"An answer that may call tools cannot be held to a form; leave {name} or the tools out."
        raise unsupported(name, said)
    try:
        GenerationConfig.parse(found)
    except InvalidConfig as error:
        raise bad(name, f"{name}: {error}") from None
    return found
