"""Folders that a process works in: held for as long as it lives, so that what a killed one has left is known.

The lock is the system's own (flock), on the folder itself. It is given up with its process, however that
dies, and stays with the folder when it is renamed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

_ABANDONED_SECONDS = 24 * 3600  # where there are no locks: nothing is worked on for a day


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder during the block, where the system and its disk can lock folders."""
    handle = _locked(folder)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def is_abandoned(folder: Path, seconds: float = 0.0) -> bool:
    """Whether the process that worked in this folder is gone, and has not touched it for so many seconds."""
    if fcntl is None:
        return _age(folder) > _ABANDONED_SECONDS
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return False  # removed meanwhile
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return _age(folder) > _ABANDONED_SECONDS
    else:
        return _age(folder) >= seconds
    finally:
        os.close(handle)


def _locked(folder: Path) -> int | None:
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # a disk without locks
        os.close(handle)
        return None
    return handle


def _age(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0
