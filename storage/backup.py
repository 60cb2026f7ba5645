"""A whole registry in one file, and back: the database by SQLite's own backup, and every blob that its rows
need.

The file is an uncompressed zip: backup.json, registry.db, and blobs/<digest> as files or small folders. Base
models are not in it: they are large, come from elsewhere, and are recognised by their fingerprint when they
are added again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import time
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path

from storage.blobs import BlobStore
from storage.database import Database
from storage.errors import StorageError
from storage.registry import Registry

FORMAT = 1
_DATABASE, _ABOUT, _BLOBS = "registry.db", "backup.json", "blobs/"
_MEMBER = re.compile(r"^blobs/([0-9a-f]{64})(?:/([A-Za-z0-9._-]+))?$")
Watch = Callable[[str, float], None]
"""Called with what is being done and the share that is done."""


def backup(registry: Registry, target: Path, watch: Watch) -> int:
    """Write the registry to the new file `target`, also while it is in use. Returns the number of blobs in
    it.

    Raises StorageError if `target` exists or a blob that is needed is missing or damaged. Killed midway it
    leaves no `target`.
    """
    if target.exists():
        raise StorageError(f"{target} exists already; choose a new file.")
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{target.name}-{uuid.uuid4().hex}")
    copy = staged.with_suffix(".db")
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
            archive.writestr(
                _ABOUT,
                json.dumps({"format": FORMAT, "created": time.time(), "blobs": len(found) - len(gone)}),
            )
        with staged.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(staged, target)
    finally:
        for path in (staged, copy):
            path.unlink(missing_ok=True)
    return len(found) - len(gone)


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


def restore(source: Path, database: Path, blobs: BlobStore, watch: Watch, *, replace: bool = False) -> int:
    """Bring a backup back into a home that nothing is running on. Returns the number of blobs brought back.

    Every blob is checked against its digest before the database is put in place; what was there is kept
    beside it as registry-before-restore-….db. Raises StorageError if the file is no backup, is damaged, or
    would replace a registry with something in it and `replace` is not set.
    """
    if not replace and database.exists() and _holds_anything(database):
        raise StorageError(
            f"{database} holds a registry already; give --replace to put the backup in its place (it is "
            "kept beside)."
        )
    try:
        with zipfile.ZipFile(source) as archive:
            return _unpack(archive, source.name, database, blobs, watch)
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, KeyError) as error:
        raise StorageError(
            f"{source.name} cannot be restored: {str(error)[:200]}. Nothing was changed."
        ) from None


def _unpack(archive: zipfile.ZipFile, name: str, database: Path, blobs: BlobStore, watch: Watch) -> int:
    members = archive.namelist()
    if _ABOUT not in members or _DATABASE not in members:
        raise StorageError(f"{name} is no backup of a registry: it holds no {_ABOUT} and {_DATABASE}.")
    about = json.loads(archive.read(_ABOUT))
    if about.get("format") != FORMAT:
        raise StorageError(
            f"{name} was written by a newer version of the workbench (format {about.get('format')})."
        )
    whole: dict[str, list[tuple[str, str]]] = {}
    for member in members:
        if match := _MEMBER.match(member):
            whole.setdefault(match[1], []).append((member, match[2] or ""))
        elif member not in (_ABOUT, _DATABASE):
            raise StorageError(f"{name} is refused: {member[:80]!r} belongs to no backup.")
    for number, (digest, parts) in enumerate(sorted(whole.items())):
        watch(f"Restoring {digest[:12]}", number / len(whole))
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
            found = blobs.put(folder)
        if found != digest:
            raise StorageError(
                f"{name} is damaged: what should be {digest[:12]}… is {found[:12]}…. The registry was "
                "not changed."
            )
    staged = database.with_name(f".restore-{uuid.uuid4().hex}.db")
    try:
        with archive.open(_DATABASE) as packed, staged.open("xb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
        _put_in_place(staged, database, set(whole), name)
    finally:
        staged.unlink(missing_ok=True)
    return len(whole)


def _put_in_place(staged: Path, database: Path, there: set[str], name: str) -> None:
    opened = Database(staged)  # brings an older schema up to date
    try:
        with opened.reading() as session:
            answer = session.connection().exec_driver_sql("PRAGMA integrity_check").scalar()
        missing = Registry(opened, BlobStore.unopened(staged.parent)).referenced() - there
    finally:
        opened.close()
    if answer != "ok" or missing:
        why = str(answer) if answer != "ok" else f"{len(missing)} files that its rows need are not in it"
        raise StorageError(f"{name} is damaged: {why[:200]}. The registry was not changed.")
    if database.exists():
        kept = database.with_name(f"{database.stem}-before-restore-{time.strftime('%Y%m%d-%H%M%S')}.db")
        with sqlite3.connect(database) as old, sqlite3.connect(kept) as copy:
            old.backup(copy)
        old.close()
        copy.close()
        for suffix in ("-wal", "-shm", "-journal"):
            database.with_name(database.name + suffix).unlink(missing_ok=True)
    with staged.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(staged, database)


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
