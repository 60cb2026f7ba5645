"""The page and its few files as one application, behind the request guard."""

from __future__ import annotations

import functools
import gzip
import os
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from starlette.datastructures import Headers
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.service.conversation_files import as_jsonl, as_markdown
from app.service.exports import zipped
from app.service.workbench import Workbench
from app.shared.errors import USER_ERRORS
from app.web.guard import RequestGuard
from app.web.installable import ICONS_ROUTE, MANIFEST_ROUTE, icon_files, manifest
from app.web.judged_files import serve_judged
from app.web.open_pages import OpenPages
from storage.errors import NotFound
from storage.tables import Base, Chat, Dataset, Export

_MAX_UPLOAD = "8gb"
_ASSET_TYPES = {".js": "text/javascript", ".css": "text/css"}
_MOST_TABS = 32
"""That the server remembers, the last used: each takes about 0.8 MB, and Gradio would keep 10,000, also of
tabs that were closed or loaded anew. One that is forgotten and comes back begins with nothing chosen.
"""
_LOOKS_SECONDS = 0.01
"""Between two looks of Gradio's queue for something to do. It looks a thousand times a second by itself, for
which the open page took a tenth of a core with nobody there.
"""
_PRIVATE = (
    "registry.db",
    "blobs",
    "models",
    "exports",
    "staging",
    "locks",
    "logs",
    "engine.json",
    "app.json",
    "token",
    "api_key",
    "open.html",
    "settings.toml",
    "window",
)


def guarded_app(
    workbench: Workbench, hosts: set[str], token: str, *, encrypted: bool = False, pages: OpenPages
) -> ASGIApp:
    """The whole application, the guard outermost; which counts the pages that are open."""
    from app.web.theme import gradio_assets

    application = _Assets(_PageCompressed(build_app(workbench)), gradio_assets())
    return RequestGuard(pages.counting(application), hosts, token, encrypted=encrypted)


class _Assets:
    """Gradio's scripts and styles straight from memory, compressed once: the way through Gradio takes 4 ms of
    the server for each of the 80 that a first visit asks for. Their names change with what is in them, so
    browsers may keep them and ask for none at the second visit.
    """

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self._app, self._folder = app, folder
        self._names = {one.name for one in folder.iterdir() if one.suffix in _ASSET_TYPES}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        folder, _, name = scope.get("path", "").rpartition("/")
        found = folder == "/assets" and name in self._names and scope.get("method") == "GET"
        compressed = "gzip" in Headers(scope=scope).get("accept-encoding", "") if found else False
        answer = _asset(self._folder / name, compressed) if found else self._app
        await answer(scope, receive, send)


@functools.cache
def _asset(path: Path, compressed: bool) -> Response:
    content = path.read_bytes()
    headers = {"cache-control": "private, max-age=31536000, immutable", "vary": "accept-encoding"}
    if compressed:
        content = gzip.compress(content, compresslevel=5, mtime=0)
        headers["content-encoding"] = "gzip"
    return Response(content, headers=headers, media_type=_ASSET_TYPES[path.suffix])


class _PageCompressed:
    """Compresses the page itself, half a megabyte, to a tenth. Its assets are so already, and what streams
    must not wait.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._compressed = app, GZipMiddleware(app, minimum_size=1000, compresslevel=5)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        page = scope["type"] == "http" and scope["path"] == "/"
        await (self._compressed if page else self._app)(scope, receive, send)


def build_app(workbench: Workbench) -> ASGIApp:
    """The page and its few files as one FastAPI application, not yet guarded."""
    settings = workbench.settings
    os.environ["GRADIO_TEMP_DIR"] = str(settings.uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr
    from fastapi import FastAPI

    from app.web.page import build_page
    from app.web.theme import head, style_sheet, theme

    application = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _serve_file(application, "/workbench/plotly.min.js", plotly_script(), "text/javascript")
    _serve_file(
        application, "/workbench/icon.svg", Path(str(resources.files("assets") / "icon.svg")), "image/svg+xml"
    )
    for name, kind in (("frame.js", "text/javascript"), ("style.css", "text/css")):
        _serve_file(application, f"/workbench/{name}", Path(str(resources.files("assets") / name)), kind)
    _serve_manifest(application)
    _serve_reports(application, workbench)
    _serve_exports(application, workbench)
    _serve_conversations(application, workbench)
    serve_judged(application, workbench, number_in)
    page = build_page(workbench)
    page.state_session_capacity = _MOST_TABS
    page._queue.sleep_when_free = max(_LOOKS_SECONDS, page._queue.sleep_when_free)
    gr.mount_gradio_app(
        application,
        page,
        path="/",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        blocked_paths=[str(settings.home / name) for name in _PRIVATE],
        max_file_size=_MAX_UPLOAD,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        pwa=False,
        theme=theme(),
        css=style_sheet(),
        head=head(),
        show_error=True,
    )
    return application


def _serve_manifest(application: object) -> None:
    """What makes the page an app to install."""
    from fastapi.responses import JSONResponse

    def endpoint() -> JSONResponse:
        return JSONResponse(manifest(), media_type="application/manifest+json")

    register: Callable[..., object] = application.add_api_route  # type: ignore[attr-defined]
    register(MANIFEST_ROUTE, endpoint, methods=["GET"], include_in_schema=False, response_model=None)
    for icon in icon_files():
        _serve_file(application, f"{ICONS_ROUTE}/{icon.name}", icon, "image/png")


def _serve_reports(application: object, workbench: Workbench) -> None:
    """The report on a data set as CSV, written line by line while it is downloaded."""
    from fastapi import HTTPException
    from fastapi.responses import StreamingResponse

    def report(dataset_id: str, base: str = "", max_length: int = 0) -> StreamingResponse:
        try:
            row = workbench.registry.get(Dataset, number_in(dataset_id))
            checked = (
                workbench.datasets.checked(row, workbench.registry.find(Base, base), max_length)
                if base
                else None
            )
        except USER_ERRORS as error:
            raise HTTPException(404, str(error)) from None
        headers = {"Content-Disposition": f'attachment; filename="report-{row.id}-version-{row.version}.csv"'}
        return StreamingResponse(
            workbench.datasets.csv(row, checked), media_type="text/csv; charset=utf-8", headers=headers
        )

    register: Callable[..., object] = application.add_api_route  # type: ignore[attr-defined]
    register(
        "/workbench/data/{dataset_id}/report.csv",
        report,
        methods=["GET"],
        include_in_schema=False,
        response_model=None,
    )


def _serve_conversations(application: object, workbench: Workbench) -> None:
    """A conversation as Markdown (by its number and .md) or as rows of a data set (.jsonl)."""
    from fastapi import HTTPException
    from fastapi.responses import StreamingResponse

    def endpoint(name: str) -> StreamingResponse:
        number, _, kind = name.partition(".")
        try:
            chat = workbench.registry.get(Chat, number_in(number))
            turns = workbench.conversations.turns(chat.id or 0)
            lines = {"md": as_markdown, "jsonl": as_jsonl}[kind](chat, turns)
        except (*USER_ERRORS, KeyError) as error:
            raise HTTPException(404, str(error)) from None
        headers = {"Content-Disposition": f'attachment; filename="conversation-{chat.id}.{kind}"'}
        return StreamingResponse(lines, media_type="text/plain; charset=utf-8", headers=headers)

    register: Callable[..., object] = application.add_api_route  # type: ignore[attr-defined]
    register(
        "/workbench/chats/{name}", endpoint, methods=["GET"], include_in_schema=False, response_model=None
    )


def _serve_exports(application: object, workbench: Workbench) -> None:
    """An export as one zip, made while it is downloaded."""
    from fastapi import HTTPException
    from fastapi.responses import StreamingResponse

    def download(export_id: str) -> StreamingResponse:
        try:
            folder = Path(workbench.registry.get(Export, number_in(export_id)).folder)
        except USER_ERRORS as error:
            raise HTTPException(404, str(error)) from None
        if not folder.is_dir():
            raise HTTPException(404, f"The export {folder} is gone.")
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name)
        headers = {"Content-Disposition": f'attachment; filename="{name}.zip"'}
        return StreamingResponse(zipped(folder), media_type="application/zip", headers=headers)

    register: Callable[..., object] = application.add_api_route  # type: ignore[attr-defined]
    register(
        "/workbench/exports/{export_id}.zip",
        download,
        methods=["GET"],
        include_in_schema=False,
        response_model=None,
    )


def number_in(text: str) -> int:
    """The number that an address names. Raises NotFound for what is none."""
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise NotFound(f"{text[:40]!r} is no number of anything here.")
    return int(text)


def _serve_file(application: object, route: str, path: Path, media_type: str) -> None:
    from fastapi.responses import FileResponse

    def endpoint() -> FileResponse:
        return FileResponse(path, media_type=media_type, headers={"Cache-Control": "max-age=86400"})

    register: Callable[..., object] = application.add_api_route  # type: ignore[attr-defined]
    register(route, endpoint, methods=["GET"], include_in_schema=False, response_model=None)


def plotly_script() -> Path:
    """Plotly's JavaScript, from the installed Python package."""
    return Path(str(resources.files("plotly") / "package_data" / "plotly.min.js"))
