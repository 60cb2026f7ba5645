"""Publishing a folder: complete on disk under its final name, or not there at all.

Order: write into a staging folder in the same tree, fsync each file, fsync the folder, rename, fsync the
parent.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import InvalidInput, OutOfSpace

_STAGING = ".staging-"
_STAGED_SECONDS = 24 * 3600
SPARE_BYTES = 64 * 1024 * 1024
"""Left free on the disk beside what is written: the registry, its journal and the logs go on growing while a
large file is written, and what is recorded there must not be lost.
"""


@contextmanager
def published_folder(target: Path) -> Iterator[Path]:
    """Give a staging folder; publish it as `target` when the block ends without an error, remove it
    otherwise.

    Raises InvalidInput if `target` exists and is not an empty folder, or if nothing can be written there.
    """
    refuse_occupied(target)
    staging = target.parent / f"{_STAGING}{uuid.uuid4().hex}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        staging.mkdir()
    except OSError as error:
        raise InvalidInput(f"{target} cannot be written: {error.strerror}. Choose another place.") from None
    try:
        yield staging
        _sync_tree(staging)
        if target.exists():
            target.rmdir()  # empty, as checked above; raises if something came in meanwhile
        os.replace(staging, target)
        sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed have left half written here: nothing is staged for a day."""
    for left in folder.glob(f"{_STAGING}*"):
        if time.time() - left.stat().st_mtime > _STAGED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def refuse_occupied(target: Path) -> None:
    """Raise InvalidInput unless `target` is free to be written: absent, or an empty folder."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists():
        kind = "is a folder that is not empty" if target.is_dir() else "is a file"
        raise InvalidInput(f"{target} {kind}; choose a new folder.")


def require_space(folder: Path, needed: int) -> None:
    """Raise OutOfSpace unless the disk that holds `folder` has `needed` bytes and a little more."""
    present = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(present).free
    if free < needed + SPARE_BYTES:
        raise OutOfSpace(
            f"{folder} needs {needed / 1e6:,.0f} MB, but only {free / 1e6:,.0f} MB are free on its disk; "
            "make room or choose another place. Nothing was written."
        )


def _sync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in [*sorted(p for p in folder.rglob("*") if p.is_dir()), folder]:
        sync_folder(path)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable. Windows cannot open folders and needs no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
