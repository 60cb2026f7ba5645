"""A full disk: how it shows, and how what must be written waits for space."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy.exc import OperationalError

from app.shared.errors import USER_ERRORS
from core.errors import OutOfSpace
from core.files.publish import SPARE_BYTES
from storage.errors import RegistryFull

Result = TypeVar("Result")
_PATIENCE_SECONDS = 1.0
_FULL, _FAILS = os.strerror(errno.ENOSPC), os.strerror(errno.EIO)
"""All that is left where a library in another language was writing."""


def is_full(error: BaseException) -> bool:
    """Whether this is how the system or SQLite says that the disk, or somebody's share of it, is full."""
    if isinstance(error, OperationalError):
        return getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, OutOfSpace | RegistryFull) or _FULL in str(error)


def plain_sentence(error: BaseException) -> str:
    """What is told of an error: our own in their words, those of disks and files with what to do."""
    if is_full(error) and not isinstance(error, USER_ERRORS):
        return f"There is no space left on the disk{_for(error)}; make room, and do it again."
    if not isinstance(error, OSError) or not error.strerror:
        failing = _FAILS in str(error) and not isinstance(error, USER_ERRORS)
        return f"The disk fails ({_FAILS}): look at the disk, and do it again." if failing else str(error)
    said, place = error.strerror, str(error.filename or "A file")
    if error.errno == errno.EIO:
        return f"The disk fails{_for(error)} ({said}): look at the disk, and do it again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{place} cannot be read or written ({said}): give yourself the right to, or choose another."
    return f"{place}: {said}."


def _for(error: BaseException) -> str:
    name = error.filename if isinstance(error, OSError) else None
    return f" for {name}" if name else ""


def free_bytes(folder: Path) -> int:
    """Free space on the disk that holds `folder`."""
    return shutil.disk_usage(folder).free


def bytes_to_go_on(needed: int) -> int:
    """How much must be free before a run goes on that waits for space: twice what it needs, or it would wait
    again soon.
    """
    return 2 * (needed + SPARE_BYTES)


def insist(write: Callable[[], Result], waiting: Callable[[bool], object]) -> Result:
    """Do a write to the registry; while the disk is full wait for space, since what happened must not be
    lost.

    `waiting` is told when that begins and ends. Any other error is raised.
    """
    while True:
        try:
            result = write()
        except (OperationalError, RegistryFull) as error:
            if not is_full(error):
                raise
            waiting(True)
            time.sleep(_PATIENCE_SECONDS)
        else:
            waiting(False)
            return result
