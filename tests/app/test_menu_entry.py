"""The entry in the desktop's menu, on each system: what is written where, and that nothing of it stays."""

from __future__ import annotations

import configparser
import io
import json
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from app.cli.main import app
from app.service.menu_entry import add_entry, entry_for, remove_entry, workbench_command

AWKWARD = Path('/home/o\'brien/100% "mine" $HOME')


def _size(picture: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(picture)) as image:
        return image.size


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_on_linux_it_is_a_desktop_file_with_its_icons_and_goes_without_a_trace(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    home = tmp_path / "a home"
    run = CliRunner().invoke
    done = run(app, ["shortcut", "--home", str(home), "--json"])
    written = json.loads(done.stdout)["written"]
    assert [str(path) for path in _files(tmp_path / "data")] == sorted(written)
    desktop = tmp_path / "data" / "applications" / "lora-workbench.desktop"
    text = desktop.read_text()
    assert f'-P -m app.cli.main --window --home "{home}"' in text
    if shutil.which("desktop-file-validate"):
        told = subprocess.run(["desktop-file-validate", desktop], capture_output=True, text=True, check=False)
        assert (told.returncode, told.stdout) == (0, "")
    for size in (192, 512):
        icon = tmp_path / "data" / f"icons/hicolor/{size}x{size}/apps/lora-workbench.png"
        assert _size(icon.read_bytes()) == (size, size)
    assert sorted(json.loads(run(app, ["shortcut", "--remove", "--json"]).stdout)["removed"]) == sorted(
        written
    )
    assert _files(tmp_path / "data") == []
    assert "there was no" in run(app, ["shortcut", "--remove"]).stdout


def test_a_command_with_awkward_characters_is_read_as_it_was_meant():
    """The file's text is unescaped first, then the command line: see the specification."""
    entry = entry_for("linux", Path("/home/me"), {}, AWKWARD)
    text = entry.files[0].content.decode()
    assert entry.link == Path("/home/me/.local/share/applications/lora-workbench.desktop")
    parsed = configparser.RawConfigParser()
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
    parsed.read_string(text)
    escapes = {"\\": "\\", "s": " ", "n": "\n", "t": "\t", "r": "\r"}  # there are no others
    line = re.sub(r"\\(.)", lambda found: escapes[found[1]], parsed["Desktop Entry"]["Exec"])
    plain, quoted = re.fullmatch(r'(.*) "(.*)"', line).groups()
    argument = re.sub(r'\\(["`$\\])', r"\1", quoted).replace("%%", "%")
    assert [*plain.split(), argument] == workbench_command("linux", AWKWARD)


def test_on_macos_it_is_an_application_of_the_user(tmp_path):
    entry = entry_for("darwin", tmp_path, {}, AWKWARD)
    add_entry(entry)
    folder = tmp_path / "Applications" / "LoRA Workbench.app" / "Contents"
    about = plistlib.loads((folder / "Info.plist").read_bytes())
    program = folder / "MacOS" / about["CFBundleExecutable"]
    assert program.stat().st_mode & 0o111 == 0o111
    first, second = program.read_text().splitlines()
    assert (first, shlex.split(second)) == ("#!/bin/sh", ["exec", *workbench_command("darwin", AWKWARD)])
    assert _size((folder / "Resources" / about["CFBundleIconFile"]).read_bytes()) == (512, 512)
    assert remove_entry(entry)
    assert _files(tmp_path) == []
    assert not folder.parent.exists()


def test_on_windows_it_is_a_link_in_the_start_menu_made_by_powershell(tmp_path, monkeypatch):
    environ = {"APPDATA": str(tmp_path / "o'brien"), "LOCALAPPDATA": str(tmp_path / "local")}
    entry = entry_for("win32", tmp_path, environ, Path("/data/my home"))
    link = tmp_path / "o'brien" / "Microsoft" / "Windows" / "Start Menu" / "Programs" / "LoRA Workbench.lnk"
    assert entry.link == link
    assert f"CreateShortcut('{str(link).replace(chr(39), 2 * chr(39))}')" in entry.script
    assert f"$link.TargetPath = '{Path(sys.executable).with_name('pythonw.exe')}'" in entry.script
    assert "$link.Arguments = '-P -m app.cli.main --window --home \"/data/my home\"'" in entry.script
    assert _size(entry.files[0].content) == (192, 192)

    def powershell(command: list[str], **about: object) -> subprocess.CompletedProcess[str]:
        assert command[-2:] == ["-Command", entry.script]
        link.touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("app.service.menu_entry.subprocess.run", powershell)
    assert add_entry(entry)[0] == link
    assert remove_entry(entry) == [link, entry.files[0].path]
    assert _files(tmp_path) == []


def test_a_link_that_could_not_be_made_is_told(tmp_path, monkeypatch):
    entry = entry_for("win32", tmp_path, {}, None)
    refused = subprocess.CompletedProcess([], 1, "", "scripts are disabled\n")
    monkeypatch.setattr("app.service.menu_entry.subprocess.run", lambda *given, **about: refused)
    with pytest.raises(OSError, match="could not be made: scripts are disabled"):
        add_entry(entry)
