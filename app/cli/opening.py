"""Without a command: the page, in a browser or a window of its own; and the address of one that is open."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.common import Certificate, CertificateKey, Home, Json
from app.cli.console import Console, guarded
from app.service.leaving import WAYS, named
from app.service.workbench import Workbench
from app.shared.disk import plain_sentence
from app.shared.errors import USER_ERRORS, AlreadyRunning
from app.shared.processes import is_held
from app.shared.settings import HOME_VARIABLE, Settings, settings_for
from app.shared.user_settings import DEFAULT, PreferenceStore
from storage.tables import Run

if TYPE_CHECKING:
    from app.web.open_pages import OpenPages
    from app.web.window import NoWindow


@guarded
def open_page(
    context: typer.Context,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on; 0.0.0.0 for the whole network. Default: as set, or 127.0.0.1."
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on. Default: as set, or 7860.", min=1, max=65535)
    ] = None,
    certfile: Certificate = None,
    keyfile: CertificateKey = None,
    window: Annotated[
        bool,
        typer.Option(
            "--window", help="Open a window of its own: Chromium, Chrome or Edge in app mode, or pywebview."
        ),
    ] = False,
    on_close: Annotated[
        str | None,
        typer.Option(help=f"What becomes of runs when that window is closed: ask, {', '.join(WAYS)}."),
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Do not open a browser window.")] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Open the page."""
    if context.invoked_subcommand is not None:
        if json:
            raise typer.BadParameter(f"put --json behind the command: {context.invoked_subcommand} … --json")
        if home is not None:
            os.environ[HOME_VARIABLE] = str(home)  # for the command that follows
        return
    if window and no_browser:
        raise typer.BadParameter("--window and --no-browser contradict each other.")
    from app.web.server import Listening, serve

    settings, console = settings_for(home), Console(json)
    named_here = {"host": host, "port": port, "on_close": on_close}
    given = {name: value for name, value in named_here.items() if value is not None}
    store = PreferenceStore(settings)
    store.given(given)
    show = _Show(console, window=window, tab=not no_browser)
    try:
        if window and is_held(settings.app_lock):
            _look_in(settings, console)
            return
        chosen = store.values()
        found = _port(console, store) if window else chosen.port
        serve(settings, Listening(chosen.host, found, certfile, keyfile), show, console.result, given)
    except (*USER_ERRORS, OSError) as error:
        if window and not _is_terminal():
            _show_refusal(settings, plain_sentence(error))
        raise


class _Show:
    """How the page is shown, and the question when its window is closed during a run."""

    def __init__(self, console: Console, *, window: bool, tab: bool) -> None:
        self._console, self._window, self._tab = console, window, tab

    def window(self, workbench: Workbench, pages: OpenPages) -> NoWindow:
        """What runs the server. Raises CannotListen."""
        from app.web.window import BrowserTab, NoWindow, window_for

        if self._window:
            return window_for(
                workbench.settings,
                pages,
                self._console.say,
                has_runs=lambda: bool(workbench.registry.runs.active()),
                asks=lambda: workbench.preferences.values().on_close == "ask",
            )
        return BrowserTab(workbench.settings) if self._tab else NoWindow()

    def way(self, workbench: Workbench, *, asked: bool) -> str:
        """As it is set, or as somebody answers; without anybody to ask the runs go on."""
        active, way = workbench.registry.runs.active(), workbench.preferences.values().on_close
        if way != "ask":
            return way
        return _answer(active) if active and not asked and _is_terminal() else "continue"


def _answer(active: Sequence[Run]) -> str:
    """Of who sits at the terminal; who ends the question lets them go on."""
    question = f"The window is closed. {named(active)} in the background, or: pause, stop?"
    while True:
        try:
            answer = str(typer.prompt(question, default="continue", err=True)).strip().lower()
        except (typer.Abort, EOFError):
            return "continue"
        if answer in WAYS:
            return answer
        typer.echo(f"One of {', '.join(WAYS)}, not {answer!r}.", err=True)


def _is_terminal() -> bool:
    return all(one is not None and one.isatty() for one in (sys.stdin, sys.stderr))


def _port(console: Console, store: PreferenceStore) -> int:
    """The port that was chosen; where nobody chose one, the first free one: other programs like 7860, too."""
    from app.web.address import first_free_port

    port = store.find("port")
    if port.source != DEFAULT:
        return int(port.value)
    found = first_free_port(store.values().host, port.value)
    if found != port.value:
        console.say(f"Port {port.value} is taken by another program, so the page is on {found}.")
    return found


def _look_in(settings: Settings, console: Console) -> None:
    """The page is open already: one more window on it."""
    from app.web.open_pages import OpenPages
    from app.web.server import running_address
    from app.web.window import window_for

    found = running_address(settings)
    if not found.startswith("http"):
        raise AlreadyRunning(f"The workbench is just being opened on {settings.home}; {found}.")
    shown = window_for(settings, OpenPages(), console.say)
    console.result(
        {"address": found, "window": shown.said}, [("Open already", found), ("Window", shown.said)]
    )
    shown.open(found)


def _show_refusal(settings: Settings, sentence: str) -> None:
    from app.web.window import has_display, show_refusal

    if has_display():
        show_refusal(settings, sentence)


@guarded
def address(
    new_token: Annotated[
        bool, typer.Option("--new-token", help="Make a new token; it counts from the page's next start.")
    ] = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Print the address of the open page, with the token that opens it."""
    from app.web.server import running_address
    from app.web.token import page_token

    settings = settings_for(home)
    if new_token:
        page_token(settings, anew=True)
        Console(json).result({"new_token": True}, [("Token", "a new one, from the page's next start on")])
        return
    found = running_address(settings)
    Console(json).result({"address": found}, [("Open", found)])
