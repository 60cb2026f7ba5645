"""What other users of the machine must not read: the home folder and the few small files that give access.

A folder or file is made with the right mode from its first moment, and one that has lost it gets it back.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from pathlib import Path

from app.shared.errors import NotYours

FOLDER_MODE, FILE_MODE = 0o700, 0o600
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_UMASK_VARIABLE = "LORA_WORKBENCH_UMASK"  # what it was before, for children
log = logging.getLogger("app")


def private_folder(folder: Path) -> Path:
    """Have a folder that only this user can enter; one that others can is repaired, and that is said.

    Raises NotYours for a folder of another user.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
    if os.name != "posix":
        return folder  # access lists of other systems come from the user's profile
    about = folder.stat()
    if about.st_uid != os.geteuid() and os.geteuid() != 0:
        raise NotYours(f"{folder} belongs to another user; choose a folder of your own with --home.")
    if about.st_mode & _OTHERS:
        folder.chmod(FOLDER_MODE)
        log.warning("%s could be read by other users of this machine; now only you can.", folder)
    return folder


def private_by_default() -> None:
    """From here on whatever this process and its children create is for this user alone."""
    os.environ.setdefault(_UMASK_VARIABLE, f"{os.umask(_OTHERS):o}")
    os.umask(_OTHERS)


def as_users_files(folder: Path) -> None:
    """Give a folder that was asked for outside of the home folder the modes of the user's other files."""
    umask = int(os.environ.get(_UMASK_VARIABLE, f"{_OTHERS:o}"), 8)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def write_private(path: Path, text: str) -> None:
    """Publish a small file that only this user can read: complete under its name, or not there."""
    staged = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    staged.unlink(missing_ok=True)
    handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def is_private(path: Path) -> bool:
    """Whether nobody else can read this file."""
    return os.name != "posix" or not path.stat().st_mode & _OTHERS
