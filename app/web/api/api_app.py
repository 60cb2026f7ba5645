"""The API as one application behind its key, for the page's server and for one of its own."""

from __future__ import annotations

from collections.abc import Collection

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from app.service.workbench import Workbench
from app.web.api.adapter_routes import AdapterRoutes
from app.web.api.api_key import api_key
from app.web.api.desk import Desk
from app.web.api.key_guard import KeyGuard
from app.web.api.ollama_routes import OllamaRoutes
from app.web.api.openai_errors import ApiError
from app.web.api.openai_routes import OpenAIRoutes
from app.web.api.waiting_line import WaitingLine

_PATHS = ("/v1/", "/api/")
_SINGLE_PATHS = ("/health", "/metrics")


def guarded_api(
    workbench: Workbench, hosts: Collection[str], *, open_here: bool = False, line: WaitingLine | None = None
) -> ASGIApp:
    """The API, the guard outermost. open_here: without a key, for requests to `hosts` alone.

    Raises InvalidConfig for a key that is set wrongly.
    """
    key = "" if open_here else api_key(workbench.settings, workbench.preferences)
    desk = Desk(workbench.serving, line or WaitingLine())
    adapters = AdapterRoutes(desk, workbench.loading, locked=bool(key))
    return KeyGuard(_api(desk, adapters), key, hosts)


def _api(desk: Desk, adapters: AdapterRoutes) -> Starlette:
    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(desk.counters.text(desk.line), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/metrics", metrics),
            *OpenAIRoutes(desk).routes(),
            *adapters.routes(),
            *OllamaRoutes(desk).routes(),
        ],
        exception_handlers={HTTPException: _not_there},
    )


async def _not_there(request: Request, error: Exception) -> Response:
    """Paths and methods that there are not; of the latter, which there are."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    said = f"{request.method} {path} is not served here."
    response = ApiError(error.status_code, said, code="not_served").response(path)
    response.headers.update(error.headers or {})
    return response


def beside_page(page: ASGIApp, api: ASGIApp) -> ASGIApp:
    """Both under one address, each behind its own guard: what opens one does not open the other."""

    async def either(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        is_api = scope["type"] == "http" and (path.startswith(_PATHS) or path in _SINGLE_PATHS)
        await (api if is_api else page)(scope, receive, send)

    return either
