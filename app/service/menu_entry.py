"""An entry in the desktop's menu that opens the workbench in a window of its own.

What is written where is told by pure functions, one for each system, as a list of files; Windows makes its
link itself, from a script.
"""

from __future__ import annotations

import plistlib
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PureWindowsPath

NAME = "LoRA Workbench"
_ID = "lora-workbench"
_COMMENT = "Train, keep, compare and merge LoRA adapters"
_ICONS = {192: "icon-192.png", 512: "icon-512.png"}


@dataclass(frozen=True)
class EntryFile:
    """One file of an entry."""

    path: Path
    content: bytes
    executable: bool = False


@dataclass(frozen=True)
class Entry:
    """An entry: its files, and what makes and finishes it where files alone do not."""

    files: Sequence[EntryFile]
    link: Path
    """What people see in the menu."""
    script: str = ""
    """Of PowerShell, which makes the link."""
    folder: Path | None = None
    """That is all its own, and goes with it."""


def entry_for(system: str, user: Path, environ: Mapping[str, str], home: Path | None = None) -> Entry:
    """What the entry is on this system. user: the user's own folder; home: the workbench's, where it is to be
    named.
    """
    command = workbench_command(system, home)
    if system == "darwin":
        return _app_folder(user, command)
    if system == "win32":
        return _start_menu(environ, user, command)
    return _freedesktop(Path(environ.get("XDG_DATA_HOME") or user / ".local" / "share"), command)


def workbench_command(system: str, home: Path | None) -> list[str]:
    """What opens the window, from any folder; on Windows by the Python that opens no terminal."""
    python = Path(sys.executable)
    if system == "win32":
        python = python.with_name("pythonw.exe")
    named = ["--home", str(home)] if home else []
    return [str(python), "-P", "-m", "app.cli.main", "--window", *named]


def _freedesktop(data: Path, command: Sequence[str]) -> Entry:
    """https://specifications.freedesktop.org/desktop-entry-spec/latest/"""
    link = data / "applications" / f"{_ID}.desktop"
    text = "\n".join(
        [
            "[Desktop Entry]",
            "Type=Application",
            f"Name={NAME}",
            f"Comment={_COMMENT}",
            f"Exec={' '.join(map(_quoted, command))}",
            f"Icon={_ID}",
            "Terminal=false",
            "Categories=Science;ArtificialIntelligence;",
            "Keywords=LoRA;adapter;training;model;",
            f"StartupWMClass={_ID}",
            "",
        ]
    )
    icons = data / "icons" / "hicolor"
    drawn = [
        EntryFile(icons / f"{size}x{size}" / "apps" / f"{_ID}.png", _asset(f"icons/{name}"))
        for size, name in _ICONS.items()
    ]
    svg = EntryFile(icons / "scalable" / "apps" / f"{_ID}.svg", _asset("icon.svg"))
    return Entry([EntryFile(link, text.encode()), svg, *drawn], link)


def _quoted(argument: str) -> str:
    """An argument of Exec: quoted for what it reads as a command line, then escaped as a text of the file."""
    if argument and all(one.isalnum() or one in "-_./:=@+," for one in argument):
        return argument
    inner = "".join(f"\\{one}" if one in '"`$\\' else one for one in argument.replace("%", "%%"))
    return f'"{inner}"'.replace("\\", "\\\\")


def _app_folder(user: Path, command: Sequence[str]) -> Entry:
    """An application of macOS is a folder with a description, a program and an icon."""
    folder = user / "Applications" / f"{NAME}.app"
    about = {
        "CFBundleName": NAME,
        "CFBundleDisplayName": NAME,
        "CFBundleIdentifier": "local.lora-workbench",
        "CFBundleVersion": "1",
        "CFBundlePackageType": "APPL",
        "CFBundleExecutable": _ID,
        "CFBundleIconFile": f"{_ID}.icns",
        "LSMinimumSystemVersion": "11.0",
    }
    script = f"#!/bin/sh\nexec {shlex.join(command)}\n"
    files = [
        EntryFile(folder / "Contents" / "Info.plist", plistlib.dumps(about)),
        EntryFile(folder / "Contents" / "MacOS" / _ID, script.encode(), executable=True),
        EntryFile(folder / "Contents" / "Resources" / f"{_ID}.icns", icns(_asset("icons/icon-512.png"))),
    ]
    return Entry(files, folder, folder=folder)


def _start_menu(environ: Mapping[str, str], user: Path, command: Sequence[str]) -> Entry:
    """A link in the start menu, which only Windows itself can write, and its icon."""
    roaming = Path(environ.get("APPDATA") or user / "AppData" / "Roaming")
    local = Path(environ.get("LOCALAPPDATA") or user / "AppData" / "Local")
    link = roaming / "Microsoft" / "Windows" / "Start Menu" / "Programs" / f"{NAME}.lnk"
    icon = EntryFile(local / _ID / f"{_ID}.ico", ico(_asset("icons/icon-192.png"), 192))
    program, *arguments = command
    lines = [
        f"$link = (New-Object -ComObject WScript.Shell).CreateShortcut({_literal(str(link))})",
        f"$link.TargetPath = {_literal(program)}",
        f"$link.Arguments = {_literal(subprocess.list2cmdline(arguments))}",
        f"$link.WorkingDirectory = {_literal(str(PureWindowsPath(program).parent))}",
        f"$link.IconLocation = {_literal(str(icon.path))}",
        f"$link.Description = {_literal(_COMMENT)}",
        "$link.Save()",
    ]
    return Entry([icon], link, "; ".join(lines))


def _literal(text: str) -> str:
    """A text of PowerShell in which nothing is replaced."""
    return "'" + text.replace("'", "''") + "'"


def icns(png: bytes) -> bytes:
    """Apple's icon file with one picture of 512 pixels."""
    picture = b"ic09" + struct.pack(">I", 8 + len(png)) + png
    return b"icns" + struct.pack(">I", 8 + len(picture)) + picture


def ico(png: bytes, size: int) -> bytes:
    """Windows' icon file with one picture of this size."""
    header = struct.pack("<HHH", 0, 1, 1)
    return header + struct.pack("<BBBBHHII", size, size, 0, 0, 1, 32, len(png), 6 + 16) + png


def _asset(name: str) -> bytes:
    return resources.files("assets").joinpath(*name.split("/")).read_bytes()


# Doing it.


def add_entry(entry: Entry) -> list[Path]:
    """Write it, over an earlier one; every path that was written. Raises OSError."""
    for file in entry.files:
        file.path.parent.mkdir(parents=True, exist_ok=True)
        file.path.write_bytes(file.content)
        file.path.chmod(0o755 if file.executable else 0o644)
    if entry.script:
        entry.link.parent.mkdir(parents=True, exist_ok=True)
        command = ["powershell", "-NoProfile", "-NonInteractive", "-Command", entry.script]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not entry.link.exists():
            raise OSError(f"The link {entry.link} could not be made: {done.stderr.strip()[:500]}")
    return [*([entry.link] if entry.script else []), *(file.path for file in entry.files)]


def remove_entry(entry: Entry) -> list[Path]:
    """Take it away; every path that was there. Raises OSError."""
    paths = dict.fromkeys([entry.link, *(file.path for file in entry.files)])
    there = [path for path in paths if path.exists()]
    if entry.folder is not None and entry.folder.exists():
        shutil.rmtree(entry.folder)
    for path in there:
        if not path.is_dir():
            path.unlink(missing_ok=True)
    return there
