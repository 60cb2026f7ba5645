"""Tools that a request offers, as both APIs write them, and calls as they are answered."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

from app.web.api.openai_errors import bad, unsupported
from app.web.api.parameters import Body, flag
from core.data.findings import RowFault
from core.data.tool_calls import Call, Tool, read_tools


def tools_asked(body: Body) -> tuple[Tool, ...]:
    """The definitions that the model is told; none where tool_choice is none. Raises ApiError."""
    sent = body.get("tools", [])
    if not isinstance(sent, list):
        raise bad("tools", "tools must be a list of definitions.")
    for at, one in enumerate(sent):
        _require_function(one, f"tools[{at}]")
    try:
        found = read_tools(sent)
    except RowFault as fault:
        raise bad("tools", fault.args[-1]) from None
    choice = body.get("tool_choice", "auto")
    if choice not in ("none", "auto"):
        said = "tool_choice may be none or auto: no answer can be made to call a tool here."
        raise unsupported("tool_choice", said)
    if found and not flag(body, "parallel_tool_calls", True):
        said = "An answer cannot be held to one call here; leave parallel_tool_calls out."
        raise unsupported("parallel_tool_calls", said)
    return found if choice == "auto" else ()


def _require_function(sent: object, where: str) -> None:
    if not isinstance(sent, dict) or sent.get("type") != "function":
        raise unsupported(where, f"{where} must be an object of the type function; there are no others here.")
    about = sent.get("function")
    if isinstance(about, dict) and about.pop("strict", None):
        said = "No answer can be held to a schema here; leave strict out of the definition."
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
