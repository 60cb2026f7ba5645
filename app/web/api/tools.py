"""Tools that a request offers, as both APIs write them, and calls as they are answered."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from app.web.api.openai_errors import bad, unsupported
from app.web.api.parameters import Body, flag
from core.data.findings import RowFault
from core.data.tool_calls import Call, Tool, read_tools


def tools_asked(body: Body) -> tuple[Tool, ...]:
    """The definitions that the model is told; none where tool_choice is none. Raises ApiError."""
    choice = body.get("tool_choice", "auto")
    is_forced = choice not in ("none", "auto")
    sent = body.get("tools", [])
    if not isinstance(sent, list):
        raise bad("tools", "tools must be a list of definitions.")
    for at, one in enumerate(sent):
        _require_function(one, f"tools[{at}]", is_forced)
    try:
        found = read_tools(sent)
    except RowFault as fault:
        raise bad("tools", fault.args[-1]) from None
    if found and not flag(body, "parallel_tool_calls", True) and not is_forced:
        said = "An answer that may call or not cannot be held to one call; leave parallel_tool_calls out."
        raise unsupported("parallel_tool_calls", said)
    return () if choice == "none" else found


def forced_call(body: Body, tools: Sequence[Tool]) -> dict[str, str]:
    """What an answer is held to that has to call a tool, any or the one that tool_choice names: JSON of one
    call, which every model can be held to, whatever its own form of a call is. Raises ApiError.
    """
    choice = body.get("tool_choice", "auto")
    if choice in ("none", "auto"):
        return {}
    about = choice.get("function") if isinstance(choice, dict) and choice.get("type") == "function" else None
    wanted = about.get("name") if isinstance(about, dict) else None
    if choice != "required" and not isinstance(wanted, str):
        said = 'tool_choice may be none, auto, required, or {"type": "function", "function": {"name": …}}'
        raise bad("tool_choice", f"{said}, not {json.dumps(choice)[:80]}.")
    offered = [one["function"] for one in tools]
    functions = [one for one in offered if wanted in (None, one["name"])]
    if not functions:
        said = f"names {wanted}" if wanted else "is required"
        names = ", ".join(one["name"] for one in offered) or "none"
        raise bad("tool_choice", f"tool_choice {said}; the tools sent are: {names}.")
    calls = [_call(one, f"#/anyOf/{at}/properties/arguments") for at, one in enumerate(functions)]
    return {"json_schema": json.dumps({"anyOf": calls}, ensure_ascii=False)}


def _call(function: Body, place: str) -> Body:
    """The schema of a call; place: where the function's parameters are in the whole."""
    parameters = function.get("parameters")
    arguments = {"type": "object"} | (_moved(parameters, place) if isinstance(parameters, dict) else {})
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, place: str) -> Any:
    """A schema whose references to its own parts count from the root of another, in which it has a place."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else _moved(value, place)
        for key, value in schema.items()
    }


def _require_function(sent: object, where: str, is_forced: bool) -> None:
    if not isinstance(sent, dict) or sent.get("type") != "function":
        raise unsupported(where, f"{where} must be an object of the type function; there are no others here.")
    about = sent.get("function")
    if isinstance(about, dict) and about.pop("strict", None) and not is_forced:
        said = (
            "An answer that may call or not cannot be held to a schema; leave strict out of the definition."
        )
        raise unsupported(f"{where}.function.strict", said)


def openai_calls(calls: Sequence[Call]) -> list[Body]:
    """Calls as OpenAI writes them, their arguments as JSON."""
    return [
        {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {
                "name": one["name"],
                "arguments": json.dumps(one["arguments"], ensure_ascii=False),
            },
        }
        for one in calls
    ]


def ollama_calls(calls: Sequence[Call]) -> list[Body]:
    """Calls as Ollama writes them."""
    return [{"function": {"name": one["name"], "arguments": one["arguments"]}} for one in calls]
