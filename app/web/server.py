"""The web server: the page behind the request guard. One for each home folder."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout
from sqlalchemy.exc import OperationalError
from starlette.types import ASGIApp

from app.service.exports import zipped
from app.service.workbench import Workbench
from app.shared.errors import USER_ERRORS, AlreadyRunning
from app.shared.settings import Settings
from app.web.guard import RequestGuard
from storage.errors import NotFound
from storage.tables import Base, Dataset, Export

_LOOK_AFTER_SECONDS = 0.2
log = logging.getLogger("app")
_MAX_UPLOAD = "8gb"
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
)

Show = Callable[[dict[str, Any], Sequence[tuple[str, str]]], None]
"""Prints a result: what a program reads of it, and its lines for people."""


def serve(settings: Settings, *, host: str, port: int, open_browser: bool, show: Show) -> None:
    """Open the page and serve until interrupted; `show` tells people and programs where it is.

    Raises AlreadyRunning with the first one's address, or for the port.
    """
    lock = FileLock(settings.locks / "app.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise AlreadyRunning(
            f"The workbench is open already on {settings.home}: {_running_address(settings)}"
        ) from None
    with lock:
        require_free_port(host, port)
        _serve(settings, host, port, open_browser, show)


def _running_address(settings: Settings) -> str:
    try:
        return str(json.loads(settings.app_file.read_text())["address"])
    except (OSError, ValueError, KeyError):
        return "its address is not known yet; try again in a moment"


def require_free_port(host: str, port: int) -> None:
    """Raise AlreadyRunning if something listens on the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise AlreadyRunning(
                f"Port {port} on {host} cannot be used ({error.strerror}); choose another with --port."
            ) from None


def _serve(settings: Settings, host: str, port: int, open_browser: bool, show: Show) -> None:
    import uvicorn

    workbench = Workbench(settings)
    token = None if is_loopback(host) else secrets.token_urlsafe(18)
    application = guarded_app(workbench, allowed_hosts(host, port), token)
    address = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}/"
    settings.app_file.write_text(json.dumps({"address": address, "pid": os.getpid()}))
    closing = threading.Event()
    threading.Thread(target=_look_after, args=(workbench, closing), daemon=True).start()
    opened = f"{address}?token={token}" if token else address
    show({"address": opened, "home": str(settings.home)}, [("Open", opened), ("Home", str(settings.home))])
    if open_browser:
        threading.Timer(1.0, webbrowser.open, args=(opened,)).start()
    try:
        uvicorn.Server(
            uvicorn.Config(
                application, host=host, port=port, log_level="warning", timeout_graceful_shutdown=1
            )
        ).run()
    finally:
        closing.set()
        settings.app_file.unlink(missing_ok=True)
        _say_what_goes_on(workbench, show)
        workbench.close()


def _look_after(workbench: Workbench, closing: threading.Event) -> None:
    """Warm the engine up, then notice processes that die, for as long as the page is open."""
    said = ""
    workbench.engine.keep_attached()
    threading.Thread(target=_tidy_up, args=(workbench,), daemon=True).start()
    while not closing.wait(_LOOK_AFTER_SECONDS):
        try:
            workbench.look_after()
        except (
            *USER_ERRORS,
            OperationalError,
        ) as error:  # a full disk, a base that is gone: said once a change, looked at again
            if str(error) != said:
                log.warning("looking after what runs: %s", error)
            said = str(error)
        else:
            said = ""


def _tidy_up(workbench: Workbench) -> None:
    """What was deleted more than a day ago goes, and what interrupted work has left; at the next start, if
    not at this one.
    """
    try:
        workbench.registry.sweep()
    except (*USER_ERRORS, OperationalError, OSError) as error:
        log.warning("tidying up: %s", error)


def _say_what_goes_on(workbench: Workbench, show: Show) -> None:
    active = workbench.registry.runs.active()
    if active:
        names = ", ".join(f"{run.id} ({run.name})" for run in active)
        text = f"Run {names} goes on without the page. Start the workbench again to see it."
        show({"active_runs": [run.id for run in active], "message": text}, [("Closed", text)])


def guarded_app(workbench: Workbench, hosts: set[str], token: str | None = None) -> ASGIApp:
    """The whole application, the guard outermost."""
    return RequestGuard(build_app(workbench), hosts, token)


def build_app(workbench: Workbench) -> ASGIApp:
    """The page and its few files as one FastAPI application, not yet guarded."""
    settings = workbench.settings
    os.environ["GRADIO_TEMP_DIR"] = str(settings.uploads)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr
    from fastapi import FastAPI

    from app.web.page import build_page
    from app.web.theme import HEAD, style_sheet, theme

    application = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _serve_file(application, "/workbench/plotly.min.js", plotly_script(), "text/javascript")
    _serve_file(
        application, "/workbench/icon.svg", Path(str(resources.files("assets") / "icon.svg")), "image/svg+xml"
    )
    _serve_reports(application, workbench)
    _serve_exports(application, workbench)
    gr.mount_gradio_app(
        application,
        build_page(workbench),
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
        head=HEAD,
        show_error=True,
    )
    return application


def _serve_reports(application: object, workbench: Workbench) -> None:
    """The report on a data set as CSV, written line by line while it is downloaded."""
    from fastapi import HTTPException
    from fastapi.responses import StreamingResponse

    def report(dataset_id: int, base: str = "", max_length: int = 0) -> StreamingResponse:
        try:
            row = workbench.registry.get(Dataset, dataset_id)
            checked = (
                workbench.datasets.checked(row, workbench.registry.find(Base, base), max_length)
                if base
                else None
            )
        except NotFound as error:
            raise HTTPException(404, str(error)) from None
        headers = {
            "Content-Disposition": f'attachment; filename="report-{dataset_id}-version-{row.version}.csv"'
        }
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


def _serve_exports(application: object, workbench: Workbench) -> None:
    """An export as one zip, made while it is downloaded."""
    from fastapi import HTTPException
    from fastapi.responses import StreamingResponse

    def download(export_id: int) -> StreamingResponse:
        try:
            folder = Path(workbench.registry.get(Export, export_id).folder)
        except NotFound as error:
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


def _serve_file(application: object, route: str, path: Path, media_type: str) -> None:
    from fastapi.responses import FileResponse

    def endpoint() -> FileResponse:
        return FileResponse(path, media_type=media_type, headers={"Cache-Control": "max-age=86400"})

    register: Callable[..., object] = application.add_api_route  # type: ignore[attr-defined]
    register(route, endpoint, methods=["GET"], include_in_schema=False, response_model=None)


def plotly_script() -> Path:
    """Plotly's JavaScript, from the installed Python package."""
    return Path(str(resources.files("plotly") / "package_data" / "plotly.min.js"))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the server."""
    return host in ("127.0.0.1", "localhost", "::1")


def allowed_hosts(host: str, port: int) -> set[str]:
    """The Host headers a server started on host and port answers to."""
    names = (
        {"127.0.0.1", "localhost", "[::1]"}
        if is_loopback(host) or host in ("0.0.0.0", "::")
        else {host.lower()}
    )
    if host in ("0.0.0.0", "::"):
        found = [
            one.address
            for many in psutil.net_if_addrs().values()
            for one in many
            if one.family == socket.AF_INET
        ]
        names |= {*found, socket.gethostname().lower()}
    return {f"{name}:{port}" for name in names} | (names if port == 80 else set())
