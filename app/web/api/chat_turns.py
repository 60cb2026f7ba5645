"""The turns of a conversation, as both APIs write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.web.api.openai_errors import bad, unsupported

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_REASONING = "reasoning_content"  # what an answer thought, as DeepSeek and vLLM call it
_EMPTY: tuple[Any, ...] = (None, "", [], {})


def turns(body: Mapping[str, Any], name: str = "messages") -> list[dict[str, str]]:
    """The conversation that was sent. Raises ApiError, naming the turn and what is wrong with it."""
    sent = body.get(name)
    if not isinstance(sent, list) or not sent:
        raise bad(name, f"{name} must be a list of turns, at least one.")
    return [_turn(one, f"{name}[{at}]") for at, one in enumerate(sent)]


def _turn(sent: Any, where: str) -> dict[str, str]:
    if not isinstance(sent, dict):
        raise bad(where, f"{where} must be an object with role and content.")
    role = sent.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad(f"{where}.role", f"{where}.role must be one of {', '.join(_ROLES)}, not {role!r}.")
    thinks = role == "assistant" and isinstance(sent.get(_REASONING), str)
    for key, value in sent.items():
        if key not in ("role", "content", *([_REASONING] if thinks else [])) and value not in _EMPTY:
            raise unsupported(f"{where}.{key}")
    turn = {"role": _ROLES[role], "content": _content(sent.get("content"), f"{where}.content")}
    return turn | ({"reasoning": sent[_REASONING]} if thinks and sent[_REASONING] else {})


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
