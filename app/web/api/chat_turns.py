"""The turns of a conversation, as both APIs write them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from app.web.api.openai_errors import bad, unsupported
from core.data.findings import RowFault
from core.data.tool_calls import Call, read_calls

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_REASONING = ("reasoning_content",)  # what an answer thought, as DeepSeek and vLLM call it
_OF_A_RESULT = {"tool_call_id": "tool_call_id", "name": "name", "tool_name": "name"}
_EMPTY: tuple[Any, ...] = (None, "", [], {})


def turns(
    body: Mapping[str, Any], name: str = "messages", reasoning: Collection[str] = _REASONING
) -> list[dict[str, Any]]:
    """The conversation that was sent. reasoning: how what an answer thought may be called.

    Raises ApiError, naming the turn and what is wrong with it.
    """
    sent = body.get(name)
    if not isinstance(sent, list) or not sent:
        raise bad(name, f"{name} must be a list of turns, at least one.")
    return [_turn(one, f"{name}[{at}]", reasoning) for at, one in enumerate(sent)]


def _turn(sent: Any, where: str, reasoning: Collection[str]) -> dict[str, Any]:
    if not isinstance(sent, dict):
        raise bad(where, f"{where} must be an object with role and content.")
    role = sent.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad(f"{where}.role", f"{where}.role must be one of {', '.join(_ROLES)}, not {role!r}.")
    beside = _beside(sent, role, where, reasoning)
    if beside.get("tool_calls") and sent.get("content") in _EMPTY:
        return {"role": role, "content": ""} | beside
    return {"role": _ROLES[role], "content": _content(sent.get("content"), f"{where}.content")} | beside


def _beside(sent: Mapping[str, Any], role: str, where: str, reasoning: Collection[str]) -> dict[str, Any]:
    """What stands in a turn beside its text. Raises ApiError for what no turn of this role can hold."""
    found: dict[str, Any] = {}
    for key, value in sent.items():
        if key in ("role", "content") or value in _EMPTY:
            continue
        if role == "assistant" and key in reasoning and isinstance(value, str):
            found["reasoning"] = value
        elif role == "assistant" and key == "tool_calls":
            found["tool_calls"] = _calls(value, f"{where}.{key}")
        elif role == "tool" and key in _OF_A_RESULT and isinstance(value, str):
            found[_OF_A_RESULT[key]] = value
        else:
            raise unsupported(f"{where}.{key}")
    return found


def _calls(sent: Any, where: str) -> list[Call]:
    try:
        return read_calls(sent, 1)
    except RowFault as fault:
        raise bad(where, f"{where}: {fault.args[-1]}") from None


def _content(sent: Any, where: str) -> str:
    """A text, or parts that are texts."""
    if isinstance(sent, str):
        return sent
    if not isinstance(sent, list) or not sent:
        raise bad(where, f"{where} must be a text, or a list of parts of the type text.")
    return "".join(_part(one, f"{where}[{at}]") for at, one in enumerate(sent))


def _part(sent: Any, where: str) -> str:
    if not isinstance(sent, dict) or sent.get("type") != "text":
        raise unsupported(where, f"{where} is no text; these models read nothing else.")
    if not isinstance(sent.get("text"), str):
        raise bad(f"{where}.text", f"{where}.text must be a text.")
    return str(sent["text"])
