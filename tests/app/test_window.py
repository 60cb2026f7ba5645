"""A window of its own: which browser, how it is started, when it is closed, and what then becomes of runs."""

from __future__ import annotations

import socket
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

from app.cli import opening
from app.cli.console import Console
from app.service.leaving import leave_runs
from app.shared.errors import AlreadyRunning, CannotListen
from app.shared.user_settings import DEFAULT, PreferenceStore
from app.web import window
from app.web.app_browsers import AppBrowser, find_browser
from app.web.open_pages import OpenPages
from app.web.window import AppWindow, BrowserTab, WebviewWindow, is_closed, window_for
from core.train.training_options import TrainingOptions
from storage.tables import Run
from tests.workbenches import QUICK, free_port, wait_for


def program(path: Path) -> Path:
    """An empty program at this place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o700)
    return path


# Which browser.


def test_on_linux_the_first_of_the_path_is_taken(tmp_path):
    assert find_browser("linux", {"PATH": str(tmp_path)}) is None
    for name, label in (
        ("microsoft-edge", "Microsoft Edge"),
        ("google-chrome", "Google Chrome"),
        ("chromium", "Chromium"),
    ):
        path = program(tmp_path / name)
        assert find_browser("linux", {"PATH": str(tmp_path)}) == AppBrowser(label, path)


def test_on_macos_it_is_among_the_applications_of_all_or_of_the_user(tmp_path):
    mine = tmp_path / "Applications" / "Google Chrome.app" / "Contents" / "MacOS" / "Google Chrome"
    assert find_browser("darwin", {}, tmp_path) is None
    program(mine)
    assert find_browser("darwin", {}, tmp_path) == AppBrowser("Google Chrome", mine)


def test_on_windows_it_is_among_the_programs(tmp_path):
    environ = {"ProgramFiles": str(tmp_path / "all"), "LocalAppData": str(tmp_path / "mine")}
    assert find_browser("win32", environ) is None
    edge = program(tmp_path / "all" / "Microsoft" / "Edge" / "Application" / "msedge.exe")
    assert find_browser("win32", environ) == AppBrowser("Microsoft Edge", edge)
    chrome = program(tmp_path / "mine" / "Google" / "Chrome" / "Application" / "chrome.exe")
    assert find_browser("win32", environ) == AppBrowser("Google Chrome", chrome)


def test_without_a_sandbox_it_is_started_only_as_root_and_the_token_is_in_no_argument(settings, monkeypatch):
    started = []
    monkeypatch.setattr(window.subprocess, "Popen", lambda command, **about: started.append((command, about)))
    for as_root in (True, False):
        monkeypatch.setattr(window, "_is_root", lambda as_root=as_root: as_root)
        shown = AppWindow(settings, AppBrowser("Chromium", Path("/usr/bin/chromium")), OpenPages(), print)
        assert ("since this is root" in shown.said) == as_root
        shown.open("http://127.0.0.1:7860/?token=secret")
        command, about = started.pop()
        assert ("--no-sandbox" in command) == as_root
        assert "secret" not in " ".join(command)
        assert f"--app={settings.opening_file.as_uri()}" in command
        assert f"--user-data-dir={settings.home / 'window'}" in command
        assert about["start_new_session"]
    assert "?token=secret" in settings.opening_file.read_text()
    assert settings.opening_file.stat().st_mode & 0o777 == 0o600
    assert (settings.home / "window").stat().st_mode & 0o777 == 0o700


def test_a_snap_gets_a_profile_that_it_may_see(tmp_path):
    script = program(tmp_path / "chromium-browser")
    script.write_text('#!/bin/sh\nexec /snap/bin/chromium "$@"\n')
    home = Path("/home/me/.local/share/lora-workbench")
    for path in (script, Path("/snap/bin/chromium")):
        profile = AppBrowser("Chromium", path).profile(home)
        assert profile == Path.home() / "snap" / "chromium" / "common" / "lora-workbench-lora-workbench"


def test_pywebview_is_next_then_the_default_browser_and_without_a_display_it_is_refused(
    settings, monkeypatch
):
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.setattr(window, "find_browser", lambda: AppBrowser("Chromium", Path("/usr/bin/chromium")))
    assert isinstance(window_for(settings, OpenPages(), print), AppWindow)
    monkeypatch.setattr(window, "find_browser", lambda: None)
    monkeypatch.setattr(window, "find_spec", lambda name: name)
    assert isinstance(window_for(settings, OpenPages(), print), WebviewWindow)
    monkeypatch.setattr(window, "find_spec", lambda name: None)
    tab = window_for(settings, OpenPages(), print)
    assert isinstance(tab, BrowserTab)
    assert "the default browser, since neither Chromium, Chrome or Edge nor pywebview" in tab.said
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(window.sys, "platform", "linux")
    with pytest.raises(CannotListen, match="A window needs a display"):
        window_for(settings, OpenPages(), print)


# When it is closed.


class Pages(OpenPages):
    """So many open, or none for so long."""

    def __init__(self, count: int = 0, *, quiet: float = 0.0, seen: bool = True) -> None:
        super().__init__()
        self.count, self.seen, self._quiet = count, seen, quiet

    @property
    def quiet_seconds(self) -> float:
        return self._quiet


@pytest.mark.parametrize(
    ("exit_code", "pages", "system", "closed"),
    [
        (None, Pages(1), "linux", False),
        (None, Pages(quiet=999), "linux", False),  # it shows another page for a while
        (0, Pages(1), "linux", False),  # it handed over to a browser with this profile
        (0, Pages(quiet=0.5), "linux", False),
        (0, Pages(quiet=2), "linux", True),
        (0, Pages(quiet=2, seen=False), "linux", False),  # not loaded yet
        (0, Pages(quiet=20, seen=False), "linux", True),
        (None, Pages(1), "darwin", False),
        (None, Pages(quiet=5), "darwin", False),  # loaded anew
        (None, Pages(quiet=20), "darwin", True),  # the program outlives its windows
        (None, Pages(quiet=999, seen=False), "darwin", False),
    ],
)
def test_a_window_is_closed_when_its_process_and_its_page_are_gone(exit_code, pages, system, closed):
    assert is_closed(exit_code, pages, system) == closed


class Server:
    """As uvicorn's, without serving."""

    started, should_exit = True, False

    def run(self) -> None:
        wait_for(lambda: self.should_exit)


def _app_window(settings, monkeypatch, pages, code, said):
    process = types.SimpleNamespace(poll=lambda: code, returncode=code)
    shown = AppWindow(settings, AppBrowser("Chromium", Path("/usr/bin/chromium")), pages, said.append)
    monkeypatch.setattr(shown, "show", lambda html: process)
    return shown


def test_the_server_ends_with_its_window(settings, monkeypatch):
    server, said = Server(), []
    shown = _app_window(settings, monkeypatch, Pages(quiet=2), 0, said)
    shown.run(server, "http://here")
    assert (shown.closed, server.should_exit, said) == (True, True, [])


def test_a_browser_that_does_not_start_is_named_and_the_default_one_opens(settings, monkeypatch):
    server, said, opened = Server(), [], []

    def open_tab(self: BrowserTab, address: str) -> None:
        opened.append(address)
        server.should_exit = True

    monkeypatch.setattr(BrowserTab, "open", open_tab)
    shown = _app_window(settings, monkeypatch, Pages(seen=False), 7, said)
    shown.run(server, "http://here")
    assert (shown.closed, opened) == (False, ["http://here"])
    assert "Chromium ended with exit code 7" in said[0]
    assert "opens in the default browser" in said[0]


def test_pywebview_asks_before_it_closes_during_a_run(settings, monkeypatch):
    """Its own question: a dialog from within its closing event would wait for the thread that it is in."""
    handlers, about = [], {}

    class Closing(list):
        def __iadd__(self, handler):
            handlers.append(handler)
            return self

    shown = types.SimpleNamespace(confirm_close=False, events=types.SimpleNamespace(closing=Closing()))
    asked = []

    def start(**options: object) -> None:
        about.update(options)
        handlers[0]()
        asked.append(shown.confirm_close)

    def create(title: str, address: str, **options: object) -> types.SimpleNamespace:
        about.update(options, address=address)
        return shown

    fake = types.SimpleNamespace(settings={}, create_window=create, start=start)
    monkeypatch.setitem(sys.modules, "webview", fake)
    for has_runs, asks in ((True, True), (True, False), (False, True)):
        handlers.clear()
        pywebview = WebviewWindow(settings, lambda has_runs=has_runs: has_runs, lambda asks=asks: asks)
        pywebview.run(Server(), "http://here")
        assert pywebview.closed
    assert asked == [True, False, False]
    assert about["address"] == "http://here"
    assert "goes on in the background" in about["localization"]["global.quitConfirmation"]
    assert (settings.home / "window").stat().st_mode & 0o777 == 0o700


# What becomes of runs.


@pytest.fixture
def running(workbench):
    """A run under way, and one that waits."""
    options = TrainingOptions.parse({**QUICK, "max_steps": 5000})
    run = workbench.training.start("llama", "data", options, "first")
    wait_for(lambda: workbench.registry.measurements.last_point(run.id))
    waiting = workbench.training.start("llama", "data", options, "second")
    return [run.id, waiting.id]


@pytest.mark.parametrize("way", ["pause", "stop"])
def test_closing_pauses_or_stops_what_is_under_way_and_what_waits(workbench, running, way):
    said = leave_runs(workbench, way)
    state = {"pause": "paused", "stop": "stopped"}[way]
    assert [workbench.registry.get(Run, one).state for one in running] == [state, state]
    assert said == f"Run 1 (first) is {state}. Run 2 (second) is {state}."
    assert workbench.registry.measurements.last_point(running[1]) is None
    assert leave_runs(workbench, way) == ""


def test_closing_lets_runs_go_on_and_says_what_has_not_ended_yet(workbench, running):
    said = leave_runs(workbench, "continue")
    assert said.startswith("Runs 1 (first), 2 (second) go on without the page.")
    assert {run.state for run in workbench.registry.runs.active()} == {"running", "queued"}
    assert "it was asked to end, and goes on until it has saved" in leave_runs(workbench, "stop", patience=0)
    workbench.runs.wait_all(running)


@pytest.mark.parametrize(
    ("on_close", "terminal", "asked", "answers", "way"),
    [
        ("ask", True, False, ["pause"], "pause"),
        ("ask", True, False, ["what?", "stop"], "stop"),
        ("ask", True, False, [], "continue"),  # Ctrl+C, or the end of the input
        ("ask", True, True, ["stop"], "continue"),  # pywebview has asked
        ("ask", False, False, ["stop"], "continue"),
        ("stop", True, False, ["pause"], "stop"),
        ("pause", False, False, [], "pause"),
    ],
)
def test_who_sits_at_a_terminal_is_asked(workbench, monkeypatch, on_close, terminal, asked, answers, way):
    def answer(question: str, **about: object) -> str:
        assert "Run 1 (mine) goes on in the background, or: pause, stop?" in question
        if not answers:
            raise opening.typer.Abort
        return answers.pop(0)

    monkeypatch.setattr(opening.typer, "prompt", answer)
    monkeypatch.setattr(opening, "_is_terminal", lambda: terminal)
    monkeypatch.setattr(workbench.registry.runs, "active", lambda: [Run(id=1, name="mine", state="running")])
    workbench.preferences.given({"on_close": on_close})
    show = opening._Show(Console(False), window=True, tab=False)
    assert show.way(workbench, asked=asked) == way


# Where it listens.


def test_a_port_that_nobody_chose_gives_way_to_another_program(settings, monkeypatch, capsys):
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        store = PreferenceStore(settings)
        store.given({"port": port})
        assert opening._port(Console(False), store) == port
        nobody = replace(store.find("port"), source=DEFAULT)
        monkeypatch.setattr(store, "find", lambda name: nobody)
        assert opening._port(Console(False), store) > port
        assert f"Port {port} is taken by another program, so the page is on" in capsys.readouterr().err
        monkeypatch.setattr("app.web.address._NEARBY", 1)
        with pytest.raises(AlreadyRunning, match="are taken; choose one with --port"):
            opening._port(Console(False), store)
