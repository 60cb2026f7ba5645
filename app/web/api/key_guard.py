"""Who may use the API: whoever sends the key. It opens nothing else, and nothing else opens the API.

Another web page in the user's browser does not know the key. So with a key neither Host nor Origin is looked
at, and programs behind a proxy or in a container are let in. Without one, which is only possible on this
machine, both are looked at as for the page.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from app.web.api.openai_errors import ApiError
from app.web.guard import bearer, foreign, headers_of

_WRONG_KEY_SECONDS = 1.0  # each wrong key waits this long, one after the other
_OPEN = ("/health", "/")


class KeyGuard:
    """ASGI middleware that answers 401 to whoever has not the key."""

    def __init__(self, app: ASGIApp, key: str, hosts: Collection[str]) -> None:
        """key: empty for none; then only requests to `hosts`, and from no web page, are let in."""
        self._app, self._key, self._hosts = app, key.encode(), frozenset(hosts)
        self._wrong_keys = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN:
            await self._app(scope, receive, send)
            return
        headers = headers_of(scope)
        if not self._key:
            said = foreign(headers, self._hosts)
            refusal = ApiError(403, said) if said else None
        else:
            refusal = await self._without_key(bearer(headers))
        await (refusal.response(scope["path"]) if refusal else self._app)(scope, receive, send)

    async def _without_key(self, given: str | None) -> ApiError | None:
        """Why a request with this key is refused; None if it is the right one."""
        if given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), self._key):
            return None
        if given is None:
            said = (
                "The key is missing. Send it as Authorization: Bearer KEY; `lora-workbench serve` prints it, "
                "and the page shows it under Settings."
            )
        else:
            async with self._wrong_keys:
                await asyncio.sleep(_WRONG_KEY_SECONDS)
            said = (
                "This is not the key. `lora-workbench serve` prints it, and the page shows it under Settings."
            )
        return ApiError(401, said, kind="authentication_error", code="invalid_api_key")
