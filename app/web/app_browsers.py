"""Browsers that can show a page in a window of its own: Chromium, Chrome and Edge in app mode."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

CHROMIUM, CHROME, EDGE = "Chromium", "Google Chrome", "Microsoft Edge"
_COMMANDS = {
    CHROMIUM: ("chromium", "chromium-browser"),
    CHROME: ("google-chrome", "google-chrome-stable"),
    EDGE: ("microsoft-edge", "microsoft-edge-stable"),
}
_PROGRAMS = {
    CHROMIUM: r"Chromium\Application\chrome.exe",
    CHROME: r"Google\Chrome\Application\chrome.exe",
    EDGE: r"Microsoft\Edge\Application\msedge.exe",
}
_PROGRAM_FOLDERS = ("ProgramFiles", "ProgramFiles(x86)", "LocalAppData")
_REGISTERED = {CHROME: "chrome.exe", EDGE: "msedge.exe"}
_APP_PATHS = r"Software\Microsoft\Windows\CurrentVersion\App Paths"
_QUIET = (
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-mode",  # the process ends with its last window
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disk-cache-size=33554432",
)


@dataclass(frozen=True)
class AppBrowser:
    """A browser with an app mode."""

    name: str
    path: Path

    @property
    def snap(self) -> str:
        """The snap that it is, by name; empty if it is none. Snaps see no hidden folders of the user's."""
        if "snap" in self.path.parts or self.path.resolve().name == "snap":
            return self.path.name
        beginning = self.path.read_bytes()[:4096] if self.path.is_file() else b""
        return "chromium" if beginning.startswith(b"#!") and b"/snap/bin/chromium" in beginning else ""

    def profile(self, home: Path) -> Path:
        """Its own folder for settings and cookies, in the home folder wherever it may see that."""
        if self.snap:
            return Path.home() / "snap" / self.snap / "common" / f"lora-workbench-{home.name}"
        return home / "window"

    def command(self, uri: str, profile: Path, *, as_root: bool, system: str = sys.platform) -> list[str]:
        """What opens a window on `uri`; its end is the window's, but for macOS."""
        own = [str(self.path), f"--app={uri}", f"--user-data-dir={profile}", *_QUIET]
        if system.startswith("linux"):
            own.append("--class=lora-workbench")  # the menu entry's StartupWMClass
            if as_root:
                own.append("--no-sandbox")  # Chromium refuses to start otherwise
        return own if profile.exists() and any(profile.iterdir()) else [*own, "--window-size=1440,900"]


def find_browser(
    system: str = sys.platform, environ: Mapping[str, str] = os.environ, user: Path | None = None
) -> AppBrowser | None:
    """The first that is installed. `user`: the user's own folder."""
    user = user or Path.home()
    places = {"darwin": lambda: _applications(user), "win32": lambda: _programs(environ)}
    found = places.get(system, lambda: _on_path(environ))()
    return next((AppBrowser(name, path) for name, path in found if path.is_file()), None)


def _on_path(environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    for name, commands in _COMMANDS.items():
        for command in commands:
            if path := shutil.which(command, path=environ.get("PATH")):
                yield name, Path(path)


def _applications(user: Path) -> Iterator[tuple[str, Path]]:
    for name in _COMMANDS:
        for folder in (Path("/Applications"), user / "Applications"):
            yield name, folder / f"{name}.app" / "Contents" / "MacOS" / name


def _programs(environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    for name, program in _PROGRAMS.items():
        if registered := _registered(_REGISTERED.get(name, "")):
            yield name, registered
        for folder in _PROGRAM_FOLDERS:
            if environ.get(folder):
                yield name, Path(environ[folder], *program.split("\\"))


def _registered(program: str) -> Path | None:
    """Where Windows has noted that a program is."""
    if sys.platform != "win32" or not program:
        return None
    import winreg

    for root in (winreg.HKEY_CURRENT_USER, winreg.HKEY_LOCAL_MACHINE):
        try:
            return Path(winreg.QueryValue(root, rf"{_APP_PATHS}\{program}"))
        except OSError:
            continue
    return None
