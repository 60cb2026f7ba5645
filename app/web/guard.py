"""The request guard: stands in front of every route and lets only the page's own requests through.

Every web page in the user's browser can send requests to this machine. So the Host must be one the server was
started with (DNS rebinding), an Origin must be our own and Sec-Fetch-Site must say same-origin or none
(cross-site requests). When the server listens beyond this machine, a token is asked for as well.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterable
from http import HTTPStatus
from http.cookies import SimpleCookie
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "lora_workbench_token"
_FAILED_TOKEN_SECONDS = 1.0  # each wrong token waits this long, one after the other


class RequestGuard:
    """ASGI middleware that answers 403 to strangers,
    and 401 to people without the token where one is needed.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], token: str | None = None) -> None:
        """hosts: allowed values of the Host header, with port, in lower case."""
        self._app, self._hosts, self._token = app, frozenset(hosts), token
        self._wrong_tokens = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }
        refusal = self._refusal(headers)
        if refusal:
            await _respond(scope, send, HTTPStatus.FORBIDDEN, refusal)
        elif self._token is None or self._has_token(headers):
            await self._app(scope, receive, send)
        else:
            await self._ask_for_token(scope, send)

    def _refusal(self, headers: dict[str, str]) -> str:
        """Why a request does not come from our own page; empty if it does."""
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return (
                "This address is not one the workbench was started with. Open it under the address "
                "it printed."
            )
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
            return "Requests from other web pages are refused."
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return "Requests from other web pages are refused. Open the workbench by typing its address."
        return ""

    def _has_token(self, headers: dict[str, str]) -> bool:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        return cookie is not None and self._matches(cookie.value)

    def _matches(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), (self._token or "").encode())

    async def _ask_for_token(self, scope: Scope, send: Send) -> None:
        """Take the token from ?token=… into a cookie, or refuse; wrong ones are slowed down."""
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        if given and self._matches(given):
            cookie = f"{COOKIE}={self._token}; Path=/; HttpOnly; SameSite=Strict"
            headers = [(b"location", b"/"), (b"set-cookie", cookie.encode())]
            await _respond(scope, send, HTTPStatus.SEE_OTHER, "", headers)
            return
        if given:
            async with self._wrong_tokens:
                await asyncio.sleep(_FAILED_TOKEN_SECONDS)
        await _respond(
            scope,
            send,
            HTTPStatus.UNAUTHORIZED,
            "Open the address with the token that the workbench printed.",
        )


async def _respond(
    scope: Scope, send: Send, status: HTTPStatus, text: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = text.encode()
    basics = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": int(status), "headers": [*basics, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})
