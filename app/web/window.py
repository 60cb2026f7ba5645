"""Where the page is shown: in a window of its own, in a tab of the browser, or nowhere yet.

Each runs the server until it is to end. A window of its own is the whole workbench: when it is closed, the
server ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from app.shared.errors import CannotListen
from app.shared.private import private_folder, write_private
from app.shared.settings import Settings
from app.web.app_browsers import AppBrowser, find_browser
from app.web.open_pages import OpenPages

if TYPE_CHECKING:
    import uvicorn

_OPENING = """<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0;url={address}"><title>LoRA Workbench</title>
"""
_REFUSAL = """<!doctype html><meta charset="utf-8"><title>LoRA Workbench</title>
<style>:root {{ color-scheme: light dark; font: 16px/1.5 system-ui }}</style>
<body style="margin: 15vh auto; max-width: 34rem"><h1>LoRA Workbench</h1><p>{sentence}</p></body>
"""
_LOOK_SECONDS = 0.2
_CLOSED_SECONDS = 1.0  # without a page, once the window's process has ended
_UNSEEN_SECONDS = 15.0  # a page may take so long to open, or, on macOS, to be loaded anew
_CLOSING = "A run is under way. It goes on in the background when this window is closed. Close it?"
Say = Callable[[str], None]


class NoWindow:
    """Nobody opens the page."""

    said, closed, asked = "", False, False

    def run(self, server: uvicorn.Server, address: str) -> None:
        """Serve until interrupted."""
        server.run()


class BrowserTab(NoWindow):
    """A tab of the default browser, by a file that only this user can read: every user can see the arguments
    that a browser is started with.
    """

    def __init__(self, settings: Settings, said: str = "") -> None:
        self._settings, self.said = settings, said

    def run(self, server: uvicorn.Server, address: str) -> None:
        """Open it as soon as the server answers."""
        _when_started(server, lambda: self.open(address))
        server.run()

    def open(self, address: str) -> None:
        """Open it now."""
        self.show(_OPENING.format(address=address))

    def show(self, html: str) -> None:
        """Show what leads somewhere, or says something."""
        write_private(self._settings.opening_file, html)
        webbrowser.open(self._settings.opening_file.as_uri())


class AppWindow(NoWindow):
    """A browser in app mode with a profile of its own."""

    def __init__(self, settings: Settings, browser: AppBrowser, pages: OpenPages, say: Say) -> None:
        self._settings, self._browser, self._pages, self._say = settings, browser, pages, say
        self._process: subprocess.Popen[bytes] | None = None
        self.closed = False
        unsafe = ", without its sandbox, since this is root" if _is_root() else ""
        self.said = f"{browser.name} in app mode ({browser.path}{unsafe})"

    def run(self, server: uvicorn.Server, address: str) -> None:
        """Open it as soon as the server answers; end the server when it is closed."""
        _when_started(server, lambda: self._follow(server, address))
        try:
            server.run()
        finally:
            self._end()

    def open(self, address: str) -> None:
        """Open it now."""
        self._process = self.show(_OPENING.format(address=address))

    def show(self, html: str) -> subprocess.Popen[bytes]:
        """Show what leads somewhere, or says something, in a session of its own: Ctrl+C in the terminal is
        for the server.
        """
        profile = private_folder(self._browser.profile(self._settings.home))
        file = (profile if self._browser.snap else self._settings.home) / self._settings.opening_file.name
        write_private(file, html)
        with (self._settings.logs / "window.log").open("ab") as log:
            return subprocess.Popen(
                self._browser.command(file.as_uri(), profile, as_root=_is_root()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _follow(self, server: uvicorn.Server, address: str) -> None:
        process = self._process = self.show(_OPENING.format(address=address))
        while not server.should_exit and not is_closed(process.poll(), self._pages):
            if process.poll() and not self._pages.seen:
                self._say(
                    f"{self._browser.name} ended with exit code {process.returncode} (see "
                    f"{self._settings.logs / 'window.log'}), so the page opens in the default browser."
                )
                BrowserTab(self._settings).open(address)
                return
            time.sleep(_LOOK_SECONDS)
        self.closed, server.should_exit = not server.should_exit, True

    def _end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)


def is_closed(exit_code: int | None, pages: OpenPages, system: str = sys.platform) -> bool:
    """Whether the window is: its process has ended and no page is open.

    A process may hand its window over to one that is there already, and ends at once; on macOS it outlives
    its windows.
    """
    if exit_code is None and system != "darwin":
        return False
    enough = _CLOSED_SECONDS if exit_code is not None and pages.seen else _UNSEEN_SECONDS
    return (exit_code is not None or pages.seen) and pages.quiet_seconds > enough


class WebviewWindow(NoWindow):
    """pywebview's window: it has the main thread, the server another."""

    said, asked = "pywebview", True

    def __init__(self, settings: Settings, has_runs: Callable[[], bool], asks: Callable[[], bool]) -> None:
        """asks: whether closing it during a run is to be confirmed."""
        self._settings, self._has_runs, self._asks, self.closed = settings, has_runs, asks, False

    def run(self, server: uvicorn.Server, address: str) -> None:
        """Serve until it is closed."""
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while thread.is_alive() and not server.started:
                time.sleep(_LOOK_SECONDS)
            if server.started:
                self.open(address)
                self.closed = not server.should_exit
        finally:
            server.should_exit = True
            thread.join()

    def open(self, address: str) -> None:
        """Until it is closed."""
        import webview

        webview.settings["ALLOW_DOWNLOADS"] = True
        about = {"global.quitConfirmation": _CLOSING}
        window = webview.create_window(
            "LoRA Workbench", address, width=1440, height=900, text_select=True, localization=about
        )

        def closing() -> None:
            # pywebview asks right after this; a dialog of ours would wait for the thread that it is in.
            window.confirm_close = self._asks() and self._has_runs()

        window.events.closing += closing
        folder = private_folder(self._settings.home / "window")
        webview.start(private_mode=False, storage_path=str(folder))


def window_for(
    settings: Settings,
    pages: OpenPages,
    say: Say,
    has_runs: Callable[[], bool] = lambda: False,
    asks: Callable[[], bool] = lambda: False,
) -> AppWindow | WebviewWindow | BrowserTab:
    """The window that this machine can show: by a browser in app mode, pywebview, or else a tab.

    Raises CannotListen where there is no display.
    """
    if not has_display():
        raise CannotListen(
            "A window needs a display, and neither DISPLAY nor WAYLAND_DISPLAY is set. Start without "
            "--window and open the address that is printed, from another machine by ssh -L."
        )
    if browser := find_browser():
        return AppWindow(settings, browser, pages, say)
    if find_spec("webview"):
        return WebviewWindow(settings, has_runs, asks)
    said = "the default browser, since neither Chromium, Chrome or Edge nor pywebview ([desktop]) was found"
    return BrowserTab(settings, said)


def has_display() -> bool:
    """Whether a window can be shown here at all."""
    named = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(named) or not sys.platform.startswith("linux")


def _is_root() -> bool:
    return sys.platform.startswith("linux") and os.geteuid() == 0


def _when_started(server: uvicorn.Server, then: Callable[[], Any]) -> None:
    """Do it in a thread of its own as soon as the server answers."""

    def wait() -> None:
        while not server.started and not server.should_exit:
            time.sleep(_LOOK_SECONDS / 4)
        if not server.should_exit:
            then()

    threading.Thread(target=wait, daemon=True).start()


def show_refusal(settings: Settings, sentence: str) -> None:
    """Say in a window why there is none: who opens the workbench from a menu sees no terminal."""
    browser = find_browser()
    shown = AppWindow(settings, browser, OpenPages(), lambda said: None) if browser else BrowserTab(settings)
    shown.show(_REFUSAL.format(sentence=escape(sentence)))
