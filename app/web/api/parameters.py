"""Reading a request: each parameter by its name, of the right kind, or refused by its name."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from starlette.requests import Request

from app.web.api.openai_errors import ApiError, bad, unsupported
from core.data.chat_options import ChatOptions
from core.errors import InvalidConfig
from core.generate.config import GenerationConfig

_MOST_BYTES = 16 * 2**20
_MOST_WHOLE = 2**63
T = TypeVar("T")
Body = dict[str, Any]


async def body_of(request: Request) -> Body:
    """The JSON object that was sent, without what is null: that stands for what was left out.

    Raises ApiError.
    """
    packed = request.headers.get("content-encoding", "identity")
    if packed.lower() != "identity":
        raise ApiError(415, f"A request must be sent as it is, not with Content-Encoding: {packed[:80]}.")
    sent = bytearray()
    async for piece in request.stream():
        sent += piece
        if len(sent) > _MOST_BYTES:
            raise ApiError(413, f"A request may have {_MOST_BYTES // 2**20} MB.")
    try:
        body = json.loads(sent)
    except (ValueError, RecursionError) as error:
        raise bad(None, f"The request is not valid JSON: {error}.") from None
    if not isinstance(body, dict):
        raise bad(None, "The request must be a JSON object.")
    return {name: value for name, value in body.items() if value is not None}


def text(body: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A text. Raises ApiError, also for one that is missing and has no default."""
    return _of_kind(body, name, str, "a text", default)


def flag(body: Mapping[str, Any], name: str, default: bool) -> bool:
    """True or false. Raises ApiError."""
    return _of_kind(body, name, bool, "true or false", default)


def whole(body: Mapping[str, Any], name: str, default: int) -> int:
    """A whole number of 64 bits. Raises ApiError."""
    value = _of_kind(body, name, (int, float), "a whole number", default)
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise bad(name, f"{name} must be a whole number, not {json.dumps(value)}.")
    if not -_MOST_WHOLE <= value < _MOST_WHOLE:
        raise bad(name, f"{name} must be a whole number of 64 bits, not {value!r:.80}.")
    return int(value)


def mapping(body: Mapping[str, Any], name: str) -> Body:
    """An object, without what is null in it; empty if it is left out. Raises ApiError."""
    found: Body = _of_kind(body, name, dict, "an object", {})
    return {key: value for key, value in found.items() if value is not None}


def template_kwargs(body: Mapping[str, Any], name: str = "chat_template_kwargs") -> dict[str, str]:
    """What the chat template is to be given, as the option of a GenerationConfig. Raises ApiError."""
    found = mapping(body, name)
    try:
        ChatOptions(template_kwargs=found)
    except InvalidConfig as error:
        raise bad(name, str(error)) from None
    return {"template_kwargs": json.dumps(found)} if found else {}


def stop_texts(body: Mapping[str, Any], name: str = "stop") -> list[str]:
    """A text or a list of them. Raises ApiError."""
    found = body.get(name, [])
    stops = [found] if isinstance(found, str) else found
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise bad(name, f"{name} must be a text or a list of texts, none of them empty.")
    return stops


def _of_kind(body: Mapping[str, Any], name: str, kind: Any, words: str, default: Any) -> Any:
    if name not in body:
        if default is None:
            raise bad(name, f"{name} is missing: {words} is expected.")
        return default
    if not isinstance(body[name], kind):
        raise bad(name, f"{name} must be {words}, not {json.dumps(body[name])[:80]}.")
    return body[name]


def sampling(given: Mapping[str, Any], names: Mapping[str, str], defaults: Mapping[str, Any]) -> Body:
    """Options of GenerationConfig; names: what each is called in the request.

    Raises ApiError with the request's own name for what is not allowed.
    """
    found = dict(defaults)
    for name, own in names.items():
        if name not in given:
            continue
        value = given[name]
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise bad(name, f"{name} must be a number, not {json.dumps(value)[:80]}.")
        try:
            found[own] = getattr(GenerationConfig.parse({own: value}), own)
        except InvalidConfig as error:
            raise bad(name, str(error).replace(own, name)) from None
    return found


def require_known(
    body: Mapping[str, Any], known: Collection[str], neutral: Mapping[str, tuple[Any, ...]], where: str = ""
) -> None:
    """Refuse what would change the answer and does not here; nothing is left aside in silence.

    neutral: values with which a parameter asks for nothing.
    """
    for name, value in body.items():
        if name not in known and not any(_equal(value, one) for one in neutral.get(name, ())):
            allowed = " or ".join(dict.fromkeys(json.dumps(one) for one in neutral.get(name, ())))
            said = f"{where}{name} is not supported here; leave it out" + (
                f", or send {allowed}." if allowed else "."
            )
            raise unsupported(f"{where}{name}", said)


def _equal(one: Any, other: Any) -> bool:
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)
