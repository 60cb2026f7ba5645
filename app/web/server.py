"""The web server: the page behind the request guard. One for each home folder."""

from __future__ import annotations

import json
import logging
import os
import signal
import ssl
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from filelock import FileLock, Timeout

from app.service.leaving import leave_runs
from app.service.workbench import Workbench
from app.shared.errors import USER_ERRORS, AlreadyRunning, CannotListen
from app.shared.private import write_private
from app.shared.processes import is_held
from app.shared.settings import Settings
from app.web.address import address_of, allowed_hosts, is_loopback, require_free_port
from app.web.api.api_app import beside_page, guarded_api
from app.web.api.waiting_line import WaitingLine
from app.web.application import guarded_app
from app.web.open_pages import OpenPages
from app.web.token import page_token
from app.web.window import NoWindow

if TYPE_CHECKING:
    import uvicorn
    from starlette.types import ASGIApp

_LOOK_AFTER_SECONDS = 0.2
log = logging.getLogger("app")
Tell = Callable[[dict[str, Any], Sequence[tuple[str, str]]], None]
"""Prints a result: the whole as a mapping, and its labelled lines."""


class Show(Protocol):
    """How the page is shown, and what becomes of runs when its window is closed."""

    def window(self, workbench: Workbench, pages: OpenPages) -> NoWindow:
        """What runs the server. Raises CannotListen."""

    def way(self, workbench: Workbench, *, asked: bool) -> str:
        """One of app.service.leaving.WAYS, for runs under way as the window is closed; asked: it has been
        confirmed there.
        """


@dataclass(frozen=True)
class Listening:
    """Where the page listens, and with which certificate."""

    host: str
    port: int
    certfile: Path | None = None
    keyfile: Path | None = None

    @property
    def encrypted(self) -> bool:
        """Whether the traffic is."""
        return self.certfile is not None

    @property
    def exposed(self) -> bool:
        """Whether others on the network can read what is said."""
        return not self.encrypted and not is_loopback(self.host)

    @property
    def address(self) -> str:
        """The address to open, without the token."""
        return address_of(self.host, self.port, encrypted=self.encrypted)

    def require_possible(self) -> None:
        """Raise CannotListen for a certificate that cannot be used, AlreadyRunning for a taken port."""
        if self.keyfile and not self.certfile:
            raise CannotListen("--keyfile needs --certfile, the certificate that the key belongs to.")
        if self.certfile:
            try:
                ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                    self.certfile, self.keyfile
                )
            except (OSError, ssl.SSLError) as error:
                raise CannotListen(
                    f"The certificate {self.certfile} with the key {self.keyfile or 'in the same file'} "
                    "cannot be "
                    f"used: {error}. Both must be PEM files that belong together."
                ) from None
        require_free_port(self.host, self.port)


def serve(settings: Settings, listening: Listening, show: Show, tell: Tell, given: Mapping[str, Any]) -> None:
    """Open the page and serve until interrupted, or until the window of its own is closed.

    given: the settings that the command line names. Raises AlreadyRunning with the first one's address, or
    for the port; CannotListen.
    """
    lock = FileLock(settings.app_lock)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise AlreadyRunning(
            f"The workbench is open already on {settings.home}: {running_address(settings)}"
        ) from None
    with lock:
        listening.require_possible()
        workbench = Workbench(settings)
        workbench.preferences.given(given)
        try:
            _serve(workbench, listening, show, tell)
        finally:
            workbench.close()


def running_address(settings: Settings) -> str:
    """The address of the open page with its token, in words where it is not known.

    Raises AppError if no page is open on this home folder.
    """
    if not is_held(settings.app_lock):
        raise CannotListen(f"No page is open on {settings.home}. Open one with: lora-workbench")
    try:
        return str(json.loads(settings.app_file.read_text())["address"])
    except (OSError, ValueError, KeyError):
        return "its address is not known yet; try again in a moment"


def _serve(workbench: Workbench, listening: Listening, show: Show, tell: Tell) -> None:
    settings, token, pages = workbench.settings, page_token(workbench.settings), OpenPages()
    window = show.window(workbench, pages)
    hosts = allowed_hosts(listening.host, listening.port)
    page = guarded_app(workbench, hosts, token, encrypted=listening.encrypted, pages=pages)
    line = WaitingLine()
    application = beside_page(page, guarded_api(workbench, hosts, line=line))
    opened = f"{listening.address}?token={token}"
    write_private(settings.app_file, json.dumps({"address": opened, "pid": os.getpid()}))
    closing = threading.Event()
    threading.Thread(target=_look_after, args=(workbench, closing), daemon=True).start()
    _tell_where(settings, listening, opened, window, tell)
    # uvicorn raises the signal that ended it once more when it is done; unhandled, that would be the end
    # here.
    signal.signal(signal.SIGTERM, lambda *about: sys.exit(0))
    try:
        window.run(uvicorn_server(application, listening, line.close), opened)
    finally:
        closing.set()
        settings.app_file.unlink(missing_ok=True)
        settings.opening_file.unlink(missing_ok=True)
        way = show.way(workbench, asked=window.asked) if window.closed else "continue"
        _leave(workbench, way, tell)


def uvicorn_server(application: ASGIApp, listening: Listening, close: Callable[[], None]) -> uvicorn.Server:
    """What serves an application there, once it is run. close: ends what is under way, before the server
    does.
    """
    import uvicorn

    from app.web.closing_server import ClosingServer, CutOff

    config = uvicorn.Config(
        CutOff(application),
        host=listening.host,
        port=listening.port,
        ssl_certfile=listening.certfile,
        ssl_keyfile=listening.keyfile,
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    return ClosingServer(config, close)


def _tell_where(settings: Settings, listening: Listening, opened: str, window: NoWindow, tell: Tell) -> None:
    rows = [("Open", opened), ("Home", str(settings.home))]
    if window.said:
        rows.append(("Window", window.said))
    if listening.exposed:
        rows.append(("Note", readable("token")))
    about = {"address": opened, "home": str(settings.home), "encrypted": listening.encrypted}
    tell(about | ({"window": window.said} if window.said else {}), rows)


def readable(secret: str) -> str:
    """What is said where others can read the traffic."""
    return (
        f"Others on this network can read the traffic and the {secret} in it, since it is not encrypted. "
        "Give --certfile and --keyfile, or listen on 127.0.0.1 and go through ssh -L."
    )


def _look_after(workbench: Workbench, closing: threading.Event) -> None:
    """Warm the engine up, then notice processes that die, for as long as the page is open."""
    threading.Thread(target=_tidy_up, args=(workbench,), daemon=True).start()
    said, wait, look = "", 0.0, workbench.engine.keep_attached
    while not closing.wait(wait):
        wait = _LOOK_AFTER_SECONDS
        try:
            look()
        except USER_ERRORS as error:  # a full disk, a base that is gone: said once a change, looked at again
            if str(error) != said:
                log.warning("looking after what runs: %s", error)
            said = str(error)
        else:
            said = ""
        look = workbench.look_after  # an engine that did not start is started by whoever needs it next


def _tidy_up(workbench: Workbench) -> None:
    """What was deleted more than a day ago goes, and what interrupted work has left; at the next start, if
    not at this one.
    """
    try:
        workbench.registry.sweep()
    except (*USER_ERRORS, OSError) as error:
        log.warning("tidying up: %s", error)


def _leave(workbench: Workbench, way: str, tell: Tell) -> None:
    """What becomes of the runs now, and say it."""
    active = [run.id for run in workbench.registry.runs.active()]
    if text := leave_runs(workbench, way):
        tell({"active_runs": active, "message": text}, [("Closed", text)])
