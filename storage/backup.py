"""A whole registry in one file, and back: the database by SQLite's own backup, and every blob that its rows
need.

The file is an uncompressed zip: backup.json, registry.db, blobs/<digest> as files or small folders, and the
user's presets as presets/<name>.toml. Base models are not in it: they are large, come from elsewhere, and are
recognised by their fingerprint when they are added again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import struct
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from storage.blobs import BlobStore, sync
from storage.database import Database
from storage.errors import StorageError
from storage.registry import Registry

FORMAT = 2
_KNOWN = (1, FORMAT)  # the first without presets
_DATABASE, _ABOUT, _BLOBS = "registry.db", "backup.json", "blobs/"
_STAGED = ".restore-"
_SAME = "The registry was not changed."
_MOST_ABOUT = 1 << 20
_DAY = 24 * 3600.0
_BESIDE = ("-wal", "-shm", "-journal")
_OF_THE_DISK = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)
_MALFORMED = (
    zipfile.BadZipFile,
    EOFError,
    NotImplementedError,
    RuntimeError,
    KeyError,
    ValueError,
    struct.error,
    zlib.error,
)
_PRESET = re.compile(r"^presets/([^/\\]+\.toml)$")
_MOST_PRESET = 1 << 20
_MEMBER = re.compile(r"^blobs/([0-9a-f]{64})(?:/([A-Za-z0-9._-]+))?$")
Watch = Callable[[str, float], None]
"""Called with what is being done and the share that is done."""


def backup(registry: Registry, target: Path, watch: Watch, presets: Path | None = None) -> int:
    """Write the registry to the new file `target`, also while it is in use, with the presets in that folder.
    Returns the number of blobs in it.

    Raises StorageError if `target` exists or a blob that is needed is missing or damaged. Killed midway it
    leaves no `target`.
    """
    if target.exists():
        raise StorageError(f"{target} exists already; choose a new file.")
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_older(target)
    staged = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    copy = staged.with_name(f"{staged.name}.db")
    try:
        registry.database.backup(copy)
        with zipfile.ZipFile(staged, "x", zipfile.ZIP_STORED) as archive:
            found = _needed_by(copy)
            gone = [
                digest
                for number, digest in enumerate(found)
                if not _pack(registry, archive, digest, watch, number / len(found))
            ]
            _forget(copy, set(gone))
            archive.write(copy, _DATABASE)
            for one in sorted(presets.glob("*.toml")) if presets else ():
                _require_preset(one.name, one.stat().st_size)
                archive.write(one, f"presets/{one.name}")
            archive.writestr(
                _ABOUT,
                json.dumps({"format": FORMAT, "created": time.time(), "blobs": len(found) - len(gone)}),
            )
        sync(staged)
        os.replace(staged, target)
        try:
            sync(target.parent)
        except OSError:
            target.unlink()
            raise
    finally:
        for path in _beginning_with(staged):  # SQLite's journal of the copy, too
            path.unlink(missing_ok=True)
    return len(found) - len(gone)


def _remove_older(target: Path) -> None:
    """What a backup to this file that was killed more than a day ago has left half written."""
    for path in _beginning_with(target.with_name(f".{target.name}-")):
        if time.time() - path.stat().st_mtime > _DAY:
            path.unlink(missing_ok=True)


def _beginning_with(start: Path) -> list[Path]:
    return [path for path in start.parent.iterdir() if path.name.startswith(start.name)]


def _needed_by(path: Path) -> list[str]:
    database = Database(path)
    try:
        return sorted(Registry(database, BlobStore.unopened(path.parent)).referenced())
    finally:
        database.close()


def _pack(registry: Registry, archive: zipfile.ZipFile, digest: str, watch: Watch, share: float) -> bool:
    """Put a blob into the archive. False if its row has been deleted since the database was copied."""
    watch(f"Packing {digest[:12]}", share)
    try:
        source = registry.blobs.verify(digest)
        files = sorted(source.iterdir()) if source.is_dir() else [source]
        for one in files:
            archive.write(one, f"{_BLOBS}{digest}/{one.name}" if source.is_dir() else f"{_BLOBS}{digest}")
    except (StorageError, FileNotFoundError):
        if digest in registry.referenced():
            raise
        return False
    return True


def _forget(path: Path, gone: set[str]) -> None:
    """Take rows out of the copy whose blobs were deleted while it was made."""
    if not gone:
        return
    marks = ",".join("?" * len(gone))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA foreign_keys=ON")
        for table, column in (
            ("adapter", "digest"),
            ("checkpoint", "adapter_digest"),
            ("checkpoint", "state_digest"),
            ("dataset", "digest"),
            ("dataset", "rows_digest"),
        ):
            connection.execute(f"DELETE FROM {table} WHERE {column} IN ({marks})", sorted(gone))
    connection.close()


def restore(
    source: Path,
    database: Path,
    blobs: BlobStore,
    watch: Watch,
    presets: Path | None = None,
    *,
    replace: bool = False,
) -> int:
    """Bring a backup back into a home that nothing is running on, its presets into that folder, where those
    that are there stay. Returns the number of blobs brought back.

    Every blob is checked against its digest before the database is put in place; what was there is kept
    beside it as registry-before-restore-….db. Raises StorageError if the file is no backup, is damaged, or
    would replace a registry with something in it and `replace` is not set.
    """
    if not replace and database.exists() and _holds_anything(database):
        raise StorageError(
            f"{database} holds a registry already; give --replace to put the backup in its place (it is "
            "kept beside)."
        )
    _remove_left(database.parent)
    try:
        with zipfile.ZipFile(source) as archive:
            return _unpack(archive, source.name, database, blobs, watch, presets)
    except OSError as error:
        raise StorageError(f"{source.name} cannot be restored: {error.strerror or error}. {_SAME}") from None
    except (*_MALFORMED, sqlite3.DatabaseError) as error:
        raise StorageError(f"{source.name} cannot be restored: {str(error)[:200]}. {_SAME}") from None


def _remove_left(folder: Path) -> None:
    """What a restore that was killed has left half written."""
    for path in folder.glob(f"{_STAGED}*"):
        path.unlink(missing_ok=True)


def _require_format(archive: zipfile.ZipFile, name: str) -> None:
    """Raise StorageError unless the archive says that it is a backup, of a version that is known here."""
    members = archive.namelist()
    if _ABOUT not in members or _DATABASE not in members:
        raise StorageError(f"{name} is no backup of a registry: it holds no {_ABOUT} and {_DATABASE}.")
    try:
        with archive.open(_ABOUT) as file:
            found = json.loads(file.read(_MOST_ABOUT))["format"]
    except (ValueError, TypeError, KeyError):
        raise StorageError(f"{name} is no backup, or is damaged: its {_ABOUT} is none. {_SAME}") from None
    if found not in _KNOWN:
        raise StorageError(
            f"{name} was written by a newer version of the workbench (format {str(found)[:20]}). {_SAME}"
        )


def _require_space(archive: zipfile.ZipFile, name: str, folder: Path) -> None:
    needed, free = sum(one.file_size for one in archive.infolist()), shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{name} unpacks to {needed / 1e6:,.1f} MB, but {free / 1e6:,.1f} MB are free in {folder}; make "
            f"room or choose another home. {_SAME}"
        )


def _unpack(
    archive: zipfile.ZipFile,
    name: str,
    database: Path,
    blobs: BlobStore,
    watch: Watch,
    presets: Path | None,
) -> int:
    _require_format(archive, name)
    _require_space(archive, name, database.parent)
    whole: dict[str, list[tuple[str, str]]] = {}
    for member in archive.namelist():
        if match := _MEMBER.match(member):
            whole.setdefault(match[1], []).append((member, match[2] or ""))
        elif member not in (_ABOUT, _DATABASE) and not _PRESET.match(member):
            raise StorageError(f"{name} is refused: {member[:80]!r} belongs to no backup. {_SAME}")
    for number, (digest, parts) in enumerate(sorted(whole.items())):
        watch(f"Restoring {digest[:12]}", number / len(whole))
        if (found := _restored(archive, parts, blobs)) != digest:
            raise StorageError(f"{name} is damaged: what should be {digest[:12]}… is {found[:12]}…. {_SAME}")
    staged = database.with_name(f"{_STAGED}{uuid.uuid4().hex}.db")
    try:
        with archive.open(_DATABASE) as packed, staged.open("xb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        _require_whole(staged, set(whole), name)
        if presets:
            _bring_presets(archive, presets)
        _put_in_place(staged, database)
    finally:
        for path in staged.parent.glob(f"{staged.stem}*"):
            path.unlink(missing_ok=True)
    return len(whole)


def _bring_presets(archive: zipfile.ZipFile, presets: Path) -> None:
    """Write those that are not there."""
    for member in archive.infolist():
        match = _PRESET.match(member.filename)
        if match is None or (presets / match[1]).exists():
            continue
        _require_preset(match[1], member.file_size)
        presets.mkdir(exist_ok=True, mode=0o700)
        staged = presets / f"{_STAGED}{uuid.uuid4().hex}"
        try:
            with archive.open(member) as packed, staged.open("xb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
            os.replace(staged, presets / match[1])
        finally:
            staged.unlink(missing_ok=True)


def _require_preset(name: str, size: int) -> None:
    """Raise StorageError for what is too large to be one."""
    if size > _MOST_PRESET:
        raise StorageError(
            f"presets/{name} has {size / 1e6:,.1f} MB, and is no preset; move it elsewhere. {_SAME}"
        )


def _restored(archive: zipfile.ZipFile, parts: list[tuple[str, str]], blobs: BlobStore) -> str:
    """Put a blob from the archive, a file or a folder of files, into the store; returns its digest."""
    with blobs.staging() as staging:
        folder = staging / "blob"
        if parts[0][1]:
            folder.mkdir()
        for member, inner in parts:
            with (
                archive.open(member) as packed,
                (folder / inner if inner else folder).open("xb") as unpacked,
            ):
                shutil.copyfileobj(packed, unpacked, 1 << 20)
        return blobs.put(folder)


def _require_whole(staged: Path, there: set[str], name: str) -> None:
    """Raise StorageError unless the database is a registry, sound, and all that its rows need is `there`."""
    with closing(sqlite3.connect(staged)) as connection:
        known = "SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'"
        if not connection.execute(known).fetchone()[0]:
            raise StorageError(f"{name} is damaged: the registry in it is empty. {_SAME}")
    opened = Database(staged)  # brings an older schema up to date
    try:
        with opened.reading() as session:
            answer = session.connection().exec_driver_sql("PRAGMA integrity_check").scalar()
        missing = Registry(opened, BlobStore.unopened(staged.parent)).referenced() - there
    finally:
        opened.close()
    if answer != "ok" or missing:
        why = str(answer) if answer != "ok" else f"{len(missing)} files that its rows need are not in it"
        raise StorageError(f"{name} is damaged: {why[:200]}. {_SAME}")


def _put_in_place(staged: Path, database: Path) -> None:
    """Replace the registry in one step, after a copy of it beside it."""
    if database.exists():
        kept = database.with_name(f"{database.stem}-before-restore-{time.strftime('%Y%m%d-%H%M%S')}.db")
        try:
            _copy(database, kept)
        except BaseException:
            _remove(kept)
            raise
    sync(staged)
    for suffix in _BESIDE:
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    os.replace(staged, database)
    try:
        sync(database.parent)
    except OSError as error:
        raise StorageError(
            f"The backup is restored, but the disk may not have written it all ({error.strerror}): look at "
            "the disk, and restore again with --replace."
        ) from None


def _copy(database: Path, kept: Path) -> None:
    """Copy a registry, byte by byte where it is damaged, which is why it is replaced."""
    try:
        with closing(sqlite3.connect(database)) as old, closing(sqlite3.connect(kept)) as copy:
            old.execute("PRAGMA journal_mode=DELETE")  # nothing of it is in a file beside it any more
            old.backup(copy)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _OF_THE_DISK:
            raise
        _remove(kept)  # with its journal, by which SQLite would undo what is copied now
        for suffix in ("", *_BESIDE):
            if (path := database.with_name(database.name + suffix)).exists():
                shutil.copyfile(path, kept.with_name(kept.name + suffix))
    sync(kept)


def _remove(database: Path) -> None:
    """A database with all that SQLite has put beside it."""
    for suffix in ("", *_BESIDE):
        database.with_name(database.name + suffix).unlink(missing_ok=True)


def _holds_anything(path: Path) -> bool:
    database = Database(path)
    try:
        with database.reading() as session:
            counts = [
                session.connection().exec_driver_sql(f"SELECT count(*) FROM {table}").scalar()
                for table in ("adapter", "run", "dataset", "base")
            ]
        return any(counts)
    finally:
        database.close()
