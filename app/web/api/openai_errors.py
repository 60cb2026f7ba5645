"""Refusals in OpenAI's form, {"error": {"message", "type", "param", "code"}}, which its clients tell apart by
status, and in Ollama's, {"error": "sentence"}.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from starlette.responses import JSONResponse

from app.shared.errors import USER_ERRORS, EngineUnavailable
from app.web.api.waiting_line import LineClosed, LineFull
from core.errors import InvalidInput, PromptTooLong, WorkbenchError
from storage.errors import NotFound

_AGAIN_SECONDS = 2
_INVALID = "invalid_request_error"
log = logging.getLogger("app")


class ApiError(Exception):
    """A refusal, with what a client is told of it."""

    def __init__(
        self, status: int, message: str, *, kind: str = _INVALID, param: str | None = None,
        code: str | None = None, again: int = 0,
    ) -> None:  # fmt: skip
        """again: after how many seconds trying again may help; 0 if it does not."""
        super().__init__(_encodable(message))
        self.param = None if param is None else _encodable(param)
        self.status, self.kind, self.code, self.again = status, kind, code, again

    @property
    def headers(self) -> dict[str, str]:
        """That go with it."""
        return {"Retry-After": str(self.again)} if self.again else {}

    def body(self) -> dict[str, Mapping[str, str | None]]:
        """As OpenAI writes it."""
        return {
            "error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code},
        }

    def response(self, path: str = "/v1/") -> JSONResponse:
        """In the form of the API that has this path."""
        body = {"error": str(self)} if path.startswith("/api/") else self.body()
        return JSONResponse(body, self.status, self.headers)


def _encodable(text: str) -> str:
    """What was sent may hold half a character, such as "\\ud800", which no answer can be written with."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def bad(param: str | None, message: str, code: str | None = None) -> ApiError:
    """A request that cannot be answered as it is, and which parameter is at fault."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, message: str = "") -> ApiError:
    """A parameter that would change the answer, and does not here."""
    said = message or f"{param} is not supported here; leave it out."
    return bad(param, said, "unsupported_parameter")


def as_api_error(error: Exception, prompt: str = "messages") -> ApiError:
    """What a client is told of an error; prompt: which parameter held the prompt.

    Of one that is not meant for people only that it happened: the log tells it.
    """
    match error:
        case ApiError():
            return error
        case LineFull():
            return ApiError(429, str(error), kind="rate_limit_error", code="queue_full", again=error.seconds)
        case LineClosed():
            return ApiError(503, str(error), kind="server_error", code="closing", again=_AGAIN_SECONDS)
        case PromptTooLong():
            return bad(prompt, str(error), "context_length_exceeded")
        case EngineUnavailable():
            return ApiError(
                503, str(error), kind="server_error", code="engine_unavailable", again=_AGAIN_SECONDS
            )
        case NotFound():
            return ApiError(404, str(error), param="model", code="model_not_found")
        case InvalidInput():
            return bad(prompt, str(error))
    if type(error) is WorkbenchError:  # another base, or all slots, are in use right now
        return ApiError(503, str(error), kind="server_error", code="busy", again=_AGAIN_SECONDS)
    if isinstance(error, USER_ERRORS):
        return ApiError(500, str(error), kind="server_error")
    log.error("a request to the API failed", exc_info=error)
    return ApiError(500, "This failed inside the server; its log tells why.", kind="server_error")
