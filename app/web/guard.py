"""The request guard: in front of every route, it lets only this user's own requests through.

Every web page in the user's browser can send requests to this machine. So the Host must be one the server was
started with (DNS rebinding), an Origin must be our own and Sec-Fetch-Site must say same-origin or none
(cross-site requests). Every user of this machine can reach the port, too. So each request carries the token:
in a cookie, which the printed address sets, or, from a script, as `Authorization: Bearer TOKEN`.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection, Iterable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from importlib import resources
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Receive, Scope, Send

_FAILED_TOKEN_SECONDS = 1.0  # each wrong token waits this long, one after the other
_COOKIE_SECONDS = 30 * 24 * 3600
_WELCOME = """<!doctype html><meta charset="utf-8"><title>LoRA Workbench</title>
<meta http-equiv="refresh" content="0;url=/"><p><a href="/">LoRA Workbench</a></p>
"""
_ASKING = (resources.files("assets") / "token.html").read_text(encoding="utf-8")
_PLAIN = (
    "Send the token: open the address that `lora-workbench address` prints, or send it as a Bearer token.\n"
)
Headers = dict[str, str]


class RequestGuard:
    """ASGI middleware that answers 403 to other web pages, and 401 to whoever has not the token."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str], token: str, *, encrypted: bool = False) -> None:
        """hosts: allowed values of the Host header, with port, in lower case; encrypted: served by https."""
        self._app, self._hosts, self._token = app, frozenset(hosts), token.encode()
        self._secure = "; Secure" if encrypted else ""
        self._wrong_tokens = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = headers_of(scope)
        if refusal := _other_host(headers, self._hosts):
            await _respond(scope, send, HTTPStatus.FORBIDDEN, refusal)
        elif given := _token_of_query(scope):
            await self._welcome(scope, send, headers, given)
        elif refusal := _refusal(headers):
            await _respond(scope, send, HTTPStatus.FORBIDDEN, refusal)
        elif self._is_ours(headers):
            await self._app(scope, receive, send)
        else:
            await self._refuse(scope, send, headers, tried="authorization" in headers)

    def _is_ours(self, headers: Headers) -> bool:
        given, cookie = bearer(headers), _cookie(headers)
        return (given is not None and self._matches(given)) or (cookie is not None and self._matches(cookie))

    def _matches(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), self._token)

    async def _welcome(self, scope: Scope, send: Send, headers: Headers, given: str) -> None:
        """Take the token from the address into a cookie, and leave it out of the address.

        Whoever knows the token may come from anywhere. What follows must come from this page, and only a page
        of our own can lead there: a redirect would still count as coming from where the address was opened.
        """
        if not self._matches(given):
            await self._refuse(scope, send, headers, tried=True)
            return
        about = f"Path=/; HttpOnly; SameSite=Strict; Max-Age={_COOKIE_SECONDS}{self._secure}"
        cookie = f"{_cookie_name(headers)}={given}; {about}"
        await _respond(scope, send, HTTPStatus.OK, _WELCOME, [(b"set-cookie", cookie.encode())])

    async def _refuse(self, scope: Scope, send: Send, headers: Headers, *, tried: bool) -> None:
        """Ask for the token; wrong ones are slowed down."""
        if tried:
            async with self._wrong_tokens:
                await asyncio.sleep(_FAILED_TOKEN_SECONDS)
        html = "text/html" in headers.get("accept", "")
        await _respond(scope, send, HTTPStatus.UNAUTHORIZED, _ASKING if html else _PLAIN)


def headers_of(scope: Scope) -> Headers:
    """The headers of a request, their names in lower case."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def foreign(headers: Headers, hosts: Collection[str]) -> str:
    """Why a request is not for one of these hosts, or comes from another web page; empty if it is ours."""
    return _other_host(headers, hosts) or _refusal(headers)


def _other_host(headers: Headers, hosts: Collection[str]) -> str:
    if headers.get("host", "").lower() in hosts:
        return ""
    return "This address is not one the workbench was started with. Open it under the address it printed."


def _refusal(headers: Headers) -> str:
    """Why a request does not come from our own page; empty if it does."""
    host, origin = headers["host"].lower(), headers.get("origin")
    if origin is not None and origin.lower() not in (f"http://{host}", f"https://{host}"):
        return "Requests from other web pages are refused."
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return "Requests from other web pages are refused. Open the workbench by typing its address."
    return ""


def _token_of_query(scope: Scope) -> str:
    """The token in the address of the page itself; empty if there is none."""
    if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
        return ""
    return parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]


def bearer(headers: Headers) -> str | None:
    """The token or key that a request sends; None if it sends none."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if scheme.lower() == "bearer" else None


def _cookie(headers: Headers) -> str | None:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(_cookie_name(headers))
    except CookieError:  # of another program on this machine
        return None
    return found.value if found else None


def _cookie_name(headers: Headers) -> str:
    """Browsers keep one set of cookies for all ports of a host; two workbenches must not clash."""
    port = headers["host"].rpartition(":")[2]
    return f"lora_workbench_{port if port.isdigit() else 'token'}"


async def _respond(
    scope: Scope, send: Send, status: HTTPStatus, text: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    body = text.encode()
    kind = b"text/html" if text.startswith("<!doctype") else b"text/plain"
    basics = [
        (b"content-type", kind + b"; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
    ]
    await send({"type": "http.response.start", "status": int(status), "headers": [*basics, *(headers or [])]})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
