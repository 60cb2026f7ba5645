"""Content-addressed files: blobs/sha256/ab/<digest>, each a file or a small folder, published whole or not at
all.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import BlobDamaged, NotFound

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

_STAGED_SECONDS = 24 * 3600
_YOUNG_SECONDS = 5.0  # a folder is made before it is locked
_HELD, _ASIDE = "held-", "swept-"
_DIGEST = re.compile(r"^[0-9a-f]{64}$")


class BlobStore:
    """Files kept under the digest of their content."""

    def __init__(self, root: Path) -> None:
        self.folder = root
        self._root = root / "sha256"
        self._staging = root / "staging"
        for folder in (self._root, self._staging):
            folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def unopened(cls, root: Path) -> BlobStore:
        """A store that is not looked into: for a registry of which only rows are read."""
        found = cls.__new__(cls)
        found.folder, found._root, found._staging = root, root / "sha256", root / "staging"
        return found

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder in the store's own tree to write into; removed at the end of the block.

        The block holds a lock on it, which the system takes from a process that is killed.
        """
        folder = self._staging / f"{_HELD}{uuid.uuid4().hex}"
        folder.mkdir()
        lock = _lock(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)

    def put(self, source: Path) -> str:
        """Move a staged file or folder into the store; return its digest. What is there already is kept."""
        digest = content_digest(source)
        target = self._place(digest)
        if _touched(target):
            return digest
        target.parent.mkdir(parents=True, exist_ok=True)
        sync_all(source)
        os.utime(source)  # a sweep leaves alone what is younger than it looks for
        try:
            os.replace(source, target)
        except OSError:
            if not target.exists():
                raise
            return digest  # somebody else has put the same content there meanwhile
        sync(target.parent)
        return digest

    def sweep(self, referenced: Callable[[], set[str]], seconds: float = _STAGED_SECONDS) -> int:
        """Remove blobs that no row names and nobody has put for `seconds`. Returns the bytes that became
        free.

        Safe beside processes that put and publish: a blob is moved aside first, and moved back if somebody
        has put it again meanwhile. What a killed sweep had moved aside is moved back or removed by the next.
        """
        freed, before = 0, time.time() - seconds
        for aside in self._staging.glob(f"{_ASIDE}*"):
            self._put_back(aside)
        named = referenced()
        for digest in self.digests():
            target = self._place(digest)
            if digest in named or _mtime(target) > before:
                continue
            aside = self._staging / f"{_ASIDE}{digest}"
            try:
                os.replace(target, aside)
            except FileNotFoundError:
                continue  # removed by somebody else meanwhile
            if _mtime(aside) > before or digest in referenced():
                self._put_back(aside)
            else:
                freed += content_size(aside)
                _delete(aside)
        return freed

    def _put_back(self, aside: Path) -> None:
        """Whole blobs return to their place, where the next look decides; a half deleted one is removed."""
        digest = aside.name.removeprefix(_ASIDE)
        target = self._place(digest)
        if target.exists() or content_digest(aside) != digest:
            _delete(aside)
        else:
            os.replace(aside, target)
            sync(target.parent)

    def digests(self) -> list[str]:
        """Of every blob that is there."""
        return sorted(
            one.name for folder in self._root.iterdir() for one in folder.iterdir() if _DIGEST.match(one.name)
        )

    def sweep_staging(self, seconds: float = _STAGED_SECONDS) -> None:
        """Remove what processes that were killed have left behind: what nobody holds, and where there are no
        locks what is older than a day.
        """
        for folder in self._staging.iterdir():
            if folder.name.startswith(_ASIDE):
                continue
            age = time.time() - _mtime(folder)
            if age > seconds or (folder.name.startswith(_HELD) and age > _YOUNG_SECONDS and _is_free(folder)):
                shutil.rmtree(folder, ignore_errors=True)

    def path(self, digest: str) -> Path:
        """Where the blob lies. Raises NotFound if it is not there."""
        target = self._place(digest)
        if not target.exists():
            raise NotFound(f"The stored file {digest[:12]}… is missing from {self._root}.")
        return target

    def verify(self, digest: str) -> Path:
        """The blob's path after reading it and comparing its digest. Raises BlobDamaged."""
        target = self.path(digest)
        found = content_digest(target)
        if found != digest:
            raise BlobDamaged(
                f"The stored file {digest[:12]}… has changed on disk (now {found[:12]}…); restore it "
                "from a backup."
            )
        return target

    def remove(self, digest: str) -> None:
        """Delete a blob that no row needs any more: gone at once and as a whole, also if this process is
        killed.
        """
        aside = self._staging / uuid.uuid4().hex
        try:
            os.replace(self._place(digest), aside)
        except FileNotFoundError:
            return
        _delete(aside)

    def _place(self, digest: str) -> Path:
        if not _DIGEST.match(digest):
            raise NotFound(f"{digest[:80]!r} is no digest.")
        return self._root / digest[:2] / digest


def _lock(folder: Path) -> int | None:
    """Lock a folder; the handle that holds the lock, or None where folders cannot be locked or it is held."""
    if fcntl is None:
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def _is_free(folder: Path) -> bool:
    """Whether nobody holds a folder, as far as that can be known."""
    lock = _lock(folder)
    if lock is not None:
        os.close(lock)
    return lock is not None


def content_digest(path: Path) -> str:
    """SHA-256 of a file, or of a folder's sorted list of file names and their digests."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    lines = (f"{one.name}\n{content_digest(one)}\n" for one in sorted(path.iterdir()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def content_size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder. What is removed meanwhile counts nothing: others work
    there.
    """
    if path.is_dir():
        return sum(_size(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)
    return _size(path)


def _size(path: str | Path) -> int:
    try:
        about = os.stat(path)
    except FileNotFoundError:
        return 0
    return about.st_size if stat.S_ISREG(about.st_mode) else 0


def _touched(target: Path) -> bool:
    """Whether the blob is there; if so it counts as new, so that no sweep takes it from under a row about to
    be written.
    """
    try:
        os.utime(target)
    except FileNotFoundError:
        return False
    return target.exists()


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def sync_all(source: Path) -> None:
    """Flush a file, or a folder with all that is in it."""
    for path in [source, *source.rglob("*")] if source.is_dir() else [source]:
        sync(path)


def sync(path: Path) -> None:
    """Flush a file, or a folder's entries where the system can open folders."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
