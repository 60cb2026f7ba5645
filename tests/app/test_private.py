"""Other users of the machine: what they can reach of a home folder and of a page that is open on it."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import stat
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from app.service.workbench import Workbench
from app.shared.private import as_users_files, private_folder, write_private
from app.shared.processes import is_held
from app.shared.settings import settings_for
from app.web.application import build_app
from app.web.server import Listening
from core.errors import WorkbenchError
from tests.app.test_guard import routes_of
from tests.core.helpers import new_peft
from tests.workbenches import end_engine, free_port, listens, wait_for, write_rows

NOBODY = 65534
as_root = pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="becoming another user needs root"
)


def as_another_user(work: Callable[[], object]) -> object:
    """What `work` returns when another user does it, in a process of its own; its traceback if it fails."""
    "localhost".encode("idna")  # loads what the other user may not be able to read
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            answer = json.dumps(work())
        except BaseException:  # noqa: BLE001  (whatever it is, the parent is told)
            answer = json.dumps(traceback.format_exc())
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        found = json.loads(file.read())
    os.waitpid(child, 0)
    return found


@pytest.fixture
def reachable(tmp_path: Path) -> Path:
    """A folder whose parents let everybody through, as /home does."""
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
    return tmp_path


def test_a_home_folder_that_others_can_read_is_closed_with_a_word(tmp_path, caplog):
    home = tmp_path / "home"
    home.mkdir(mode=0o755)
    home.chmod(0o755)
    with caplog.at_level(logging.WARNING):
        settings_for(home)
    assert home.stat().st_mode & 0o777 == 0o700
    assert "could be read by other users" in caplog.text
    caplog.clear()
    settings_for(home)
    assert caplog.text == ""


@as_root
def test_a_folder_of_another_user_is_not_taken(reachable):
    theirs = reachable / "theirs"
    theirs.mkdir(mode=0o755)

    def take() -> str:
        try:
            private_folder(theirs)
        except Exception as error:  # noqa: BLE001  (its sentence is what is asked for)
            return str(error)
        return "taken"

    assert "belongs to another user" in as_another_user(take)
    assert theirs.stat().st_mode & 0o777 == 0o755


@pytest.fixture
def page(reachable, zygote):
    """A page that is open on a home folder that was left open, and its port."""
    home = reachable / "home"
    home.mkdir(mode=0o777)
    port = free_port()
    log = reachable / "server.log"
    log.touch()
    process = zygote.start("app.cli.main", ["--home", str(home), "--port", str(port), "--no-browser"], log)
    wait_for(lambda: process.poll() is not None or listens(port))
    yield home, port, process, log
    if process.poll() is None:
        process.terminate()
        process.wait()
    end_engine(settings_for(home))


ROUTES = (
    "/",
    "/config",
    "/gradio_api/info",
    "/gradio_api/file=/etc/hostname",
    "/workbench/exports/1.zip",
    "/workbench/data/1/report.csv",
    "/workbench/plotly.min.js",
)


@as_root
def test_another_user_gets_nothing_of_an_open_page(page, settings):
    home, port, _, _ = page
    workbench = Workbench(settings)  # the page's application, to know its routes
    asked = sorted({*routes_of(build_app(workbench)), *(("GET", route) for route in ROUTES)})
    workbench.close()
    files = [str(path) for path in [home, *home.rglob("*")]]
    assert len(asked) > 30
    assert str(home / "registry.db") in files

    def look() -> dict[str, object]:
        return {
            "statuses": {f"{method} {route}": _status(port, method, route) for method, route in asked},
            "files": {path: _read(path) for path in files},
        }

    found = as_another_user(look)
    assert isinstance(found, dict), found
    assert {one for one in found["statuses"].items() if one[1] != 401} == set()
    assert {one for one in found["files"].items() if one[1] != "refused"} == set()


def _status(port: int, method: str, route: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, route, body=b"x" if method == "POST" else None)
    status = connection.getresponse().status
    connection.close()
    return status


def _read(path: str) -> str:
    try:
        return os.listdir(path)[0] if os.path.isdir(path) else Path(path).read_bytes().decode("latin-1")[:9]
    except PermissionError:
        return "refused"


@as_root
def test_another_user_gets_nothing_of_what_work_leaves(reachable, zygote, tiny_llama):
    """Each command in a process of its own, as users start it; the home was open to everybody before."""
    home, log = reachable / "home", reachable / "log"
    home.mkdir(mode=0o777)
    rows = write_rows(reachable / "rows.jsonl")
    adapter = new_peft(tiny_llama)
    adapter.save_pretrained(reachable / "theirs")
    for command in (
        f"models add {tiny_llama} --name llama",
        f"data add {rows} --name data",
        "data report data --base llama",
        f"adapters import {reachable / 'theirs'} --name mine --base llama",
        "adapters resize mine --rank 1 --name small",
        f"export --adapter mine --to {home / 'exports' / 'mine'} --format peft",
        f"backup {home / 'home.backup'}",
        "train --base llama --data data --name taught --set max_steps=2 --set micro_batch_size=2",
        "presets save quick --set rank=2",
        "space --quota 5",
    ):
        process = zygote.start("app.cli.main", [*command.split(), "--home", str(home)], log)
        assert process.wait() == 0, (command, log.read_text())
    files = [str(path) for path in [home, *home.rglob("*")]]
    for expected in (
        "registry.db",
        "blobs",
        "exports/mine/README.md",
        "home.backup",
        "logs/jobs.log",
        "settings.toml",
    ):
        assert str(home / expected) in files
    open_to_others = [path for path in files if os.lstat(path).st_mode & 0o077 and not os.path.islink(path)]
    assert open_to_others == []
    found = as_another_user(lambda: {path: _read(path) for path in files})
    assert isinstance(found, dict), found
    assert set(found.values()) == {"refused"}
    end_engine(settings_for(home))


def test_what_the_workbench_writes_is_for_its_user_alone(page):
    home, _, _, _ = page
    wait_for(lambda: (home / "engine.json").exists())
    open_to_others = [
        path for path in home.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o077
    ]
    assert open_to_others == []


def test_asked_to_end_the_page_ends_cleanly(page):
    home, _, process, log = page
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 0
    assert "Traceback" not in log.read_text()
    assert not (home / "app.json").exists()
    assert not is_held(settings_for(home).app_lock)


def test_a_certificate_that_cannot_be_used_is_named(tmp_path):
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    for listening in (Listening("127.0.0.1", 1, wrong), Listening("127.0.0.1", 1, None, wrong)):
        with pytest.raises(Exception, match=r"certificate") as refusal:
            listening.require_possible()
        assert not isinstance(refusal.value, WorkbenchError | OSError)


def test_an_export_elsewhere_has_the_modes_of_the_users_other_files(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_WORKBENCH_UMASK", "22")
    folder, file = tmp_path / "out", tmp_path / "out" / "model.safetensors"
    folder.mkdir(mode=0o700)
    file.touch(mode=0o600)
    as_users_files(folder)
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o755, 0o644)


def test_two_threads_that_write_one_file_leave_what_one_of_them_wrote(tmp_path, monkeypatch):
    """Two tabs that save a preset; the second comes while the first makes its file durable."""
    path, flush, wrote = tmp_path / "mine.toml", os.fsync, []

    def flushed(handle):
        flush(handle)
        if not wrote:
            wrote.append("short")
            second = threading.Thread(target=write_private, args=(path, "short"))
            second.start()
            second.join()

    monkeypatch.setattr("app.shared.private.os.fsync", flushed)
    write_private(path, "the first and longer one")
    assert path.read_text() == "the first and longer one"
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
