"""Publishing a folder: complete on disk under its final name, or not there at all.

Order: write into a staging folder in the same tree, fsync each file, fsync the folder, rename, fsync the
parent.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from core.errors import InvalidInput, OutOfSpace
from core.files.holding import held, is_abandoned

_STAGING = ".staging-"
_UNFINISHED = ".unfinished"
_YOUNG_SECONDS = 5.0  # a folder is made before it is held
_SAID = (
    "This folder was being written when the program was ended: it was neither registered nor reported as "
    "done. Delete it, or write it again: then it is replaced.\n"
)
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
    with publication(target) as out:
        yield out.folder
        out.publish(marked=False)
        out.finish()


class Publication:
    """A folder on its way to its place. Made by publication()."""

    def __init__(self, target: Path, staging: Path) -> None:
        self.target, self.folder = target, staging
        self.finished = False

    def publish(self, *, marked: bool = True) -> None:
        """Put the folder in its place, flushed; where `marked`, a file in it says until finish() that it is
        not finished.
        """
        if marked:
            (self.folder / _UNFINISHED).write_text(_SAID, encoding="utf-8")
        _sync_tree(self.folder)
        if self.target.exists():
            _make_way(self.target)
        os.replace(self.folder, self.target)
        self.folder = self.target
        sync_folder(self.target.parent)

    def remove_unfinished(self) -> None:
        """Remove what lies in its place if it was not finished."""
        if self.folder == self.target and not self.finished:
            shutil.rmtree(self.target, ignore_errors=True)

    def finish(self) -> None:
        """Note that what lies in its place is whole, and registered where it has to be."""
        self.finished = True
        with suppress(OSError):  # it is registered by now, and settled when it is next asked for
            settle(self.folder)


@contextmanager
def publication(target: Path) -> Iterator[Publication]:
    """Give a folder that is written in a staging place, put in its place by publish() and kept by finish().
    Without these it is removed at the end of the block. What a killed process has left unfinished in its
    place is replaced; what it has left in staging folders beside it is removed.

    Raises InvalidInput if `target` exists and is not an empty folder, or if nothing can be written there.
    """
    refuse_occupied(target)
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            out = Publication(target, stack.enter_context(scratch_folder(target.parent)))
        except OSError as error:
            raise InvalidInput(
                f"{target} cannot be written: {error.strerror}. Choose another place."
            ) from None
        stack.callback(out.remove_unfinished)
        yield out


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """An empty folder in `parent` to work in, removed at the end of the block; what killed processes have
    left there is removed before.
    """
    _sweep(parent)
    folder = parent / f"{_STAGING}{uuid.uuid4().hex}"
    folder.mkdir()
    with held(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed have left half written here."""
    for left in folder.glob(f"{_STAGING}*"):
        if is_abandoned(left, _YOUNG_SECONDS):
            shutil.rmtree(left, ignore_errors=True)


def settle(target: Path) -> None:
    """Take the mark away that says that a folder is not finished."""
    (target / _UNFINISHED).unlink(missing_ok=True)


def is_unfinished(target: Path) -> bool:
    """Whether a killed process has left `target` in its place without finishing it."""
    mark = target / _UNFINISHED
    # Looked for once more: one that is finished in between loses its mark before it is let go.
    return mark.is_file() and is_abandoned(target) and mark.is_file()


def _make_way(target: Path) -> None:
    if is_unfinished(target):
        shutil.rmtree(target)
    else:
        target.rmdir()  # empty, as checked before; raises if something came in meanwhile


def refuse_occupied(target: Path) -> None:
    """Raise InvalidInput unless `target` is free to be written: absent, an empty folder, or one that a killed
    process has left unfinished.
    """
    if target.is_dir() and (not any(target.iterdir()) or is_unfinished(target)):
        return
    if target.exists():
        kind = "is a folder that is not empty" if target.is_dir() else "is a file"
        raise InvalidInput(f"{target} {kind}; choose a new folder.")


def require_place(target: Path) -> None:
    """Raise InvalidInput where it is seen at once that publication() cannot write `target`: it is occupied,
    or what it would be made in is no folder, or none to write to.
    """
    refuse_occupied(target)
    present = next(path for path in target.parents if path.exists())
    if not present.is_dir():
        raise InvalidInput(f"{target} cannot be written: {present} is a file. Choose another place.")
    if not os.access(present, os.W_OK):
        raise InvalidInput(f"{target} cannot be written: {os.strerror(errno.EACCES)}. Choose another place.")


def require_space(folder: Path, needed: int) -> None:
    """Raise OutOfSpace unless the disk that holds `folder` has `needed` bytes and SPARE_BYTES more."""
    present = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(present).free
    if free < needed + SPARE_BYTES:
        # a name that nobody has given helps nobody
        named = next(
            (one.parent for one in (folder, *folder.parents) if one.name.startswith(_STAGING)), folder
        )
        raise OutOfSpace(
            f"{named} needs {space_sentence(needed)}, but only {free / 1e6:,.0f} MB are free on its disk; "
            "make room or choose another place. Nothing was written."
        )


def space_sentence(needed: int) -> str:
    """How much must be free for `needed` bytes to be written: the sum, and what it is made of."""
    return (
        f"{(needed + SPARE_BYTES) / 1e6:,.1f} MB ({needed / 1e6:,.1f} MB for what is written and "
        f"{SPARE_BYTES / 1e6:,.1f} MB that stay free for the registry)"
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
