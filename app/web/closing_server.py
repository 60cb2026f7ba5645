"""uvicorn's server, ended so that whoever is cut off is told so, and nobody reads tracebacks."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.web.api.openai_errors import as_api_error
from app.web.api.waiting_line import LineClosed


class ClosingServer(uvicorn.Server):
    """Says that it is closing before it waits for what is under way."""

    def __init__(self, config: uvicorn.Config, close: Callable[[], None]) -> None:
        """close: called on the event loop, to have the application end what it can."""
        super().__init__(config)
        self._close = close

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's own, which cancels in the end what is still under way then."""
        self._close()
        await super().shutdown(sockets)


class CutOff:
    """ASGI middleware that ends what is cancelled as an answer: uvicorn would print a traceback of each."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(send)
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            if not answer.begun:
                await as_api_error(LineClosed()).response(scope["path"])(scope, receive, send)
            elif answer.goes_on:
                await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Answer:
    """How far an answer has come."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun, self.goes_on = False, False
        """goes_on: and may end anywhere, since nobody was told how long it is."""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            self.goes_on = all(name != b"content-length" for name, _ in message["headers"])
        elif not message.get("more_body", False):
            self.goes_on = False
        await self._send(message)
