"""How many pages are open: each holds one request of Gradio's for as long as it is."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Receive, Scope, Send

_HELD = "/gradio_api/heartbeat/"


class OpenPages:
    """Counts them, behind the request guard."""

    def __init__(self) -> None:
        self.count, self.seen = 0, False
        self._changed = time.monotonic()

    @property
    def quiet_seconds(self) -> float:
        """For how long no page has been open."""
        return 0.0 if self.count else time.monotonic() - self._changed

    def counting(self, app: ASGIApp) -> ASGIApp:
        """The application, counted."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or not scope["path"].startswith(_HELD):
                await app(scope, receive, send)
                return
            self._add(1)
            try:
                await app(scope, receive, send)
            finally:
                self._add(-1)

        return counted

    def _add(self, pages: int) -> None:
        self.count, self.seen, self._changed = self.count + pages, True, time.monotonic()
