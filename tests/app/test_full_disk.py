"""Disks that are full, fail or cannot be written, numbers that nothing has, damaged backups: one sentence
each, and nothing half done.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shutil
import sqlite3
import zipfile
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

import storage.database
from app.cli.main import app
from app.service.workbench import Workbench
from app.shared.disk import is_full, plain_sentence
from app.shared.errors import EngineUnavailable
from app.shared.settings import Settings, settings_for
from app.web.application import build_app
from app.web.parts.shell import told
from core.errors import OutOfSpace
from core.files.publish import SPARE_BYTES, published_folder, require_space
from core.train.training_options import TrainingOptions
from storage.errors import RegistryFull, RegistryUnusable
from storage.tables import Adapter, Chat, Dataset, Job, Run
from tests.workbenches import QUICK, do_job

HUGE = 10**23
LONG = "x" * 60_000


@pytest.fixture
def full(workbench, monkeypatch):
    """A function after which the database of the home may not grow: SQLite's own error of a full disk."""

    def fill() -> Workbench:
        configure = storage.database._configure

        def small(connection: sqlite3.Connection, record: object) -> None:
            configure(connection, record)
            connection.execute("PRAGMA max_page_count=1")  # as many as there are

        monkeypatch.setattr(storage.database, "_configure", small)
        with sqlite3.connect(workbench.settings.database) as connection:
            connection.execute("VACUUM")
        connection.close()
        return Workbench(workbench.settings)

    return fill


def test_a_full_disk_is_told_for_each_thing_that_is_written(workbench, trained, full, tmp_path):
    row = trained("mine")
    small = full()
    registry = small.registry
    long = {"folder": str(tmp_path / LONG[:200]), "name": LONG[:100], "shown": LONG}
    attempts = {
        "note": lambda: registry.adapters.change(row.id, note=LONG),
        "job": lambda: small.jobs.start("import_adapter", long),
        "train": lambda: small.training.start("llama", "data", options(), "run"),
        "chat": lambda: registry.save(Chat(base_name=LONG)),
    }
    for name, attempt in attempts.items():
        with pytest.raises(
            RegistryFull, match=r"^There is no space left on the disk for .*registry\.db; make"
        ):
            attempt()
        assert registry.find(Adapter, "mine").note == "", name
    assert registry.all(Job, limit=1)[0].kind == "add_model"
    assert registry.all(Run) == []
    small.close()


def options() -> TrainingOptions:
    return TrainingOptions.parse({**QUICK, "sample_prompts": LONG})


@pytest.mark.parametrize(
    "arguments",
    [
        ["adapters", "note", "mine", "--note", LONG],
        ["export", "--adapter", "mine", "--to", f"/tmp/{'/'.join([LONG[:200]] * 19)}"],
        ["data", "add", "ROWS", "--name", "more"],
    ],
    ids=["note", "export", "import"],
)
def test_a_command_on_a_full_disk_is_one_sentence(workbench, trained, full, tmp_path, arguments):
    trained("mine")
    full().close()
    given = [str(workbench.settings.home / "rows.jsonl") if one == "ROWS" else one for one in arguments]
    done = CliRunner().invoke(app, [*given, "--home", str(workbench.settings.home)])
    if done.exit_code:
        assert re.match(
            r"Error: There is no space left on the disk for .* Nothing was changed\.$", done.stderr
        )
    assert isinstance(done.exception, SystemExit | None)
    assert "more" not in workbench.registry.names(Dataset) or done.exit_code == 0


def test_a_button_on_a_full_disk_says_so(workbench, trained, full):
    row = trained("mine")
    small = full()

    @told
    def press() -> None:
        small.registry.adapters.change(row.id, note=LONG)

    with pytest.raises(Exception, match="no space left on the disk") as refused:
        press()
    assert type(refused.value).__module__.startswith("gradio"), "shown, not logged"
    small.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.EIO, "Input/output error", "/x/y"),
            "The disk fails for /x/y (Input/output error): look",
        ),
        (OSError(errno.EIO, "Input/output error"), "The disk fails (Input/output error): look at the disk"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            "There is no space left on the disk for /x; ",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "There is no space left on the disk; make room"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "/x cannot be read or written (Read-only file"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "/x cannot be read or written (Permission",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"),
            "/x: No such file or directory.",
        ),
        (
            ValueError("I/O error: No space left on device (os error 28)"),
            "There is no space left on the disk; ",
        ),
    ],
)
def test_what_the_system_says_becomes_a_sentence(error, said):
    assert plain_sentence(error).startswith(said)
    assert "Errno" not in plain_sentence(error)
    assert is_full(error) == ("no space left" in said)


def test_what_finds_no_space_for_its_process_does_not_wait_for_ever(workbench, trained, monkeypatch):
    trained("mine")

    def refuse(*about: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/home/logs/engine.log")

    for starter in ("app.shared.engine_client", "app.service.jobs"):
        monkeypatch.setattr(f"{starter}.start_detached", refuse)
    with pytest.raises(OSError, match="No space left"):
        workbench.adapters.inspect("mine")
    job = workbench.registry.all(Job, limit=1)[0]
    assert (job.state, job.message) == (
        "interrupted",
        "Look inside mine could not be started. There is no space left on the disk for "
        "/home/logs/engine.log; make room, and do it again.",
    )
    with pytest.raises(EngineUnavailable, match=r"could not be started\. There is no space left"):
        workbench.training.start("llama", "data", TrainingOptions.parse(QUICK))
    assert [run.state for run in workbench.registry.all(Run)] == ["failed"]


def test_a_job_that_meets_a_failing_disk_says_so(workbench, trained, monkeypatch, tmp_path):
    trained("mine")
    for number in (errno.EIO, errno.ENOSPC):

        def fail(*about: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number), "/disk/file")

        with monkeypatch.context() as patch:
            patch.setattr("storage.blobs.BlobStore.put", fail)
            job = do_job(workbench, "resize_adapter", {"adapter": "mine", "rank": 1, "name": "small"})
        assert job.state == "failed"
        assert "/disk/file" in job.message
        assert "Errno" not in job.message
    assert workbench.registry.names(Adapter) == {"mine"}
    assert do_job(workbench, "resize_adapter", {"adapter": "mine", "rank": 1, "name": "small"}).state == (
        "finished"
    )


def test_the_space_that_is_asked_for_counts_what_stays_free(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=SPARE_BYTES))
    with pytest.raises(OutOfSpace) as refused:
        require_space(tmp_path / "mine", 5_000_000)
    wanted, free = re.findall(r"([\d.,]+) MB", str(refused.value))[0::3]
    assert (wanted, free) == ("72.1", "67"), str(refused.value)


def test_what_does_not_fit_is_refused_by_the_place_that_was_chosen(tmp_path):
    with pytest.raises(OutOfSpace) as refused, published_folder(tmp_path / "mine") as staging:
        require_space(staging / "inside", 1 << 60)
    assert str(refused.value).startswith(f"{tmp_path} needs ")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_home_that_cannot_be_written_is_one_sentence(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    done = CliRunner().invoke(app, ["models", "list", "--home", str(home)])
    assert (done.exit_code, "cannot be read or written" in done.stderr) == (1, True)


def test_a_registry_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    """As on a disk that is mounted read-only."""
    settings = settings_for(tmp_path / "home")
    Workbench(settings).close()
    configure = storage.database._configure

    def read_only(connection: sqlite3.Connection, record: object) -> None:
        configure(connection, record)
        connection.execute("PRAGMA query_only=1")

    monkeypatch.setattr(storage.database, "_configure", read_only)
    with pytest.raises(RegistryUnusable, match=r"cannot be opened or written .*give yourself the right to"):
        Workbench(settings).registry.save(Chat(base_name="x"))


# Numbers that nothing has.


@pytest.mark.parametrize("number", ["0", "-1", str(2**63 - 1), str(2**63), str(HUGE), "x", "1e3", "٣", "%00"])
@pytest.mark.parametrize("route", ["/workbench/exports/{}.zip", "/workbench/data/{}/report.csv"])
def test_a_number_that_nothing_has_is_not_found(client, route, number):
    answer = client.get(route.format(number))
    assert answer.status_code == 404, answer.text
    if number != "%00":
        assert re.match(r"There is no |Numbers here go up|'.*' is no number of", answer.json()["detail"])


@pytest.fixture(scope="module")
def empty(tmp_path_factory) -> Settings:
    """A home with nothing in it."""
    return settings_for(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def client(empty):
    """Its application, without its guard."""
    workbench = Workbench(empty)
    with TestClient(build_app(workbench), raise_server_exceptions=False) as found:
        yield found
    workbench.close()


COMMANDS = (
    "runs show N",
    "runs stop N",
    "runs resume N",
    "runs pause N",
    "runs save N",
    "runs remove N --yes",
    "runs keep N",
    "runs compare 1 N",
    "runs move 1 N",
    "runs list --limit N",
    "jobs show N",
    "jobs cancel N",
    "jobs list --limit N",
    "adapters bring-back N",
    "adapters list --limit N",
    "presets show x",
    "data back x N",
)


@pytest.mark.parametrize("number", [str(HUGE), str(2**63), "0", "-5"])
def test_a_command_with_a_number_that_nothing_has_is_refused(empty, number):
    for command in COMMANDS:
        given = command.replace("N", number).split()
        done = CliRunner().invoke(app, [*given, "--home", str(empty.home)])
        assert isinstance(done.exception, SystemExit | None), (command, done.exception)
        assert "Traceback" not in done.output, command


# Backups.


def _backup(workbench, path):
    done = CliRunner().invoke(app, ["backup", str(path), "--home", str(workbench.settings.home)])
    assert done.exit_code == 0, done.output
    return path


def _changed(path, name, content):
    """The same zip with another content of one member; None: without it."""
    with zipfile.ZipFile(path) as archive:
        members = {one: archive.read(one) for one in archive.namelist()}
    members[name] = content
    with zipfile.ZipFile(path, "w") as archive:
        for one, data in members.items():
            if data is not None:
                archive.writestr(one, data)


def _other_database(tmp_path):
    path = tmp_path / "other.db"
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as connection:
        connection.execute("create table adapter (id integer)")
    connection.close()
    return path.read_bytes()


DAMAGED = (
    ("backup.json", b"", "its backup.json is none"),
    ("backup.json", b"{", "its backup.json is none"),
    ("backup.json", b"[1]", "its backup.json is none"),
    ("backup.json", b"null", "its backup.json is none"),
    ("backup.json", b"\xff\xfe", "its backup.json is none"),
    ("backup.json", b"{}", "its backup.json is none"),
    ("backup.json", b'{"format": "1"}', "was written by a newer version"),
    ("backup.json", b'{"format": 3}', "was written by a newer version"),
    ("backup.json", b"[" * 100_000, "cannot be restored|its backup.json is none"),
    ("registry.db", b"", "the registry in it is empty"),
    ("registry.db", None, "is no backup"),
    ("registry.db", b"no database at all, but long enough to be one " * 99, "cannot be restored"),
    ("registry.db", _other_database, "the registry in it is empty"),
    ("blobs/../../x", b"x", "belongs to no backup"),
)


def test_a_damaged_backup_is_one_sentence_and_changes_nothing(workbench, tmp_path):
    whole = _backup(workbench, tmp_path / "home.backup")
    for number, (name, content, said) in enumerate(DAMAGED):
        file = Path(shutil.copyfile(whole, tmp_path / f"{number}.backup"))
        _changed(file, name, content(tmp_path) if callable(content) else content)
        home = tmp_path / f"new {number}"
        done = CliRunner().invoke(app, ["restore", str(file), "--home", str(home)])
        assert (done.exit_code, bool(re.search(said, done.stderr))) == (1, True), (said, done.output)
        assert isinstance(done.exception, SystemExit), said
        assert not (home / "registry.db").exists(), said
        assert list(home.glob(".restore-*")) == [], said


def test_a_damaged_registry_is_replaced_by_a_backup_and_kept(workbench, tmp_path):
    file = _backup(workbench, tmp_path / "home.backup")
    home = settings_for(tmp_path / "new").home
    (home / "registry.db").write_bytes(b"damaged")
    for arguments, code in (([], 1), (["--replace"], 0)):
        done = CliRunner().invoke(app, ["restore", str(file), "--home", str(home), *arguments])
        assert done.exit_code == code, done.output
    assert [path.read_bytes() for path in home.glob("registry-before-restore-*.db")] == [b"damaged"]
    restored = Workbench(settings_for(home))
    assert restored.registry.names(Dataset) == {"data"}
    restored.close()


class _FailingCopies(sqlite3.Connection):
    """A connection whose copies fail after their first pages, as on a failing disk: their journal stays."""

    def backup(self, target, **options):
        (place,) = [row[2] for row in target.execute("pragma database_list")]
        Path(place).write_bytes(b"half")
        Path(f"{place}-journal").write_bytes(b"of it")
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error


def test_a_registry_that_cannot_be_kept_is_not_replaced(workbench, tmp_path, monkeypatch):
    file = _backup(workbench, tmp_path / "home.backup")
    home = settings_for(tmp_path / "new").home
    earlier = Workbench(settings_for(home))
    earlier.registry.save(Job(kind="none", title="what was there before"))
    earlier.close()
    command = ["restore", str(file), "--home", str(home), "--replace"]
    connect = functools.partial(sqlite3.connect, factory=_FailingCopies)
    with monkeypatch.context() as patch:
        patch.setattr("storage.backup.sqlite3.connect", connect)
        done = CliRunner().invoke(app, command)
    assert "disk I/O error. The registry was not changed." in done.stderr
    assert list(home.glob("registry-before-restore-*")) == []
    assert CliRunner().invoke(app, command).exit_code == 0
    (kept,) = home.glob("registry-before-restore-*")
    with sqlite3.connect(kept) as connection:
        assert connection.execute("select title from job").fetchall() == [("what was there before",)]
    connection.close()


def test_a_restore_waits_for_jobs(workbench, tmp_path):
    from filelock import FileLock

    file = _backup(workbench, tmp_path / "home.backup")
    with FileLock(workbench.settings.job_lock(7)):
        done = CliRunner().invoke(
            app, ["restore", str(file), "--replace", "--home", str(workbench.settings.home)]
        )
    assert (done.exit_code, "its runs and jobs to end" in done.stderr) == (1, True)


def test_what_is_printed_suits_a_terminal_of_few_characters(monkeypatch, capsys):
    import io
    import sys

    from app.cli.encoding import speak_any_encoding, to_json

    bare = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", bare)
    speak_any_encoding()
    print("✓ fine – né 😀 \udcff")
    print(to_json({"name": "né 😀"}))
    bare.flush()
    first, second = bare.buffer.getvalue().decode("ascii").splitlines()  # type: ignore[attr-defined]
    assert first == r"+ fine - n\xe9 \U0001f600 \udcff"
    assert json.loads(second) == {"name": "né 😀"}


def test_a_setting_that_finds_no_space_stays_as_it_was(workbench, monkeypatch):
    workbench.usage.set_quota(5)

    def refuse(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    for write in (
        lambda: workbench.usage.set_quota(7),
        lambda: workbench.presets.save("mine", options(), ""),
    ):
        with pytest.raises(OSError, match="No space left"):
            write()
    assert workbench.usage.quota() == 5
    assert list(workbench.settings.home.rglob("*.new")) == []
    assert [path.name for path in workbench.settings.home.rglob("*.toml")] == ["settings.toml"]
