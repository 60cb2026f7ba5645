"""A full disk: how it shows, and how what must be written waits for space."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy.exc import OperationalError

from core.errors import OutOfSpace

Result = TypeVar("Result")
_PATIENCE_SECONDS = 1.0


def is_full(error: BaseException) -> bool:
    """Whether this is how the system or SQLite says that the disk, or somebody's share of it, is full."""
    if isinstance(error, OperationalError):
        return getattr(error.orig, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return isinstance(error, OutOfSpace) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    )


def free_bytes(folder: Path) -> int:
    """Free space on the disk that holds `folder`."""
    return shutil.disk_usage(folder).free


def insist(write: Callable[[], Result], waiting: Callable[[bool], object]) -> Result:
    """Do a write to the registry; while the disk is full wait for space, since what happened must not be
    lost.

    `waiting` is told when that begins and ends. Any other error is raised.
    """
    while True:
        try:
            result = write()
        except OperationalError as error:
            if not is_full(error):
                raise
            waiting(True)
            time.sleep(_PATIENCE_SECONDS)
        else:
            waiting(False)
            return result
