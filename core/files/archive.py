"""Zip files from strangers: what a sound one never holds is refused before anything is unpacked.

Needs no torch.
"""

from __future__ import annotations

import stat
import zipfile
from pathlib import PurePosixPath

from core.errors import InvalidInput

_MOST_MEMBERS = 1000
_MOST_RATIO = 200  # unpacked to packed, beyond a size that does no harm
_HARMLESS = 100 << 20


def safe_members(
    archive: zipfile.ZipFile, name: str, most_bytes: int, error: type[InvalidInput] = InvalidInput
) -> list[zipfile.ZipInfo]:
    """All members of the archive called `name`.

    Raises `error` for paths that lead outside, links, encryption and bombs.
    """
    members = archive.infolist()
    if len(members) > _MOST_MEMBERS:
        raise error(f"{name} holds {len(members):,} files; at most {_MOST_MEMBERS:,} are read.")
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        if ".." in parts or member.filename.startswith(("/", "\\")) or ":" in member.filename[:3]:
            raise error(f"{name} is refused: {member.filename[:80]!r} points outside of the archive.")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise error(f"{name} is refused: {member.filename[:80]!r} is a link.")
        if member.flag_bits & 1:
            raise error(f"{name} is encrypted; unpack it and import the files.")
        what = repr(member.filename[:80])
        require_no_bomb(name, what, member.file_size, member.compress_size, most_bytes, error)
    if sum(member.file_size for member in members) > most_bytes:
        raise error(f"{name} unpacks to more than {most_bytes / (1 << 30):,.0f} GiB.")
    return members


def require_no_bomb(
    name: str, what: str, unpacked: int, packed: int, most_bytes: int, error: type[InvalidInput]
) -> None:
    """Raise `error` where `what`, in the file called `name`, unpacks to more bytes than honest data does, or
    to more than `most_bytes`.
    """
    if unpacked > _HARMLESS and unpacked > _MOST_RATIO * max(1, packed):
        raise error(
            f"{name} is refused: {what} unpacks to {unpacked / 1e9:,.1f} GB, more than {_MOST_RATIO} times "
            "its size."
        )
    if unpacked > most_bytes:
        raise error(f"{name} unpacks to more than {most_bytes / (1 << 30):,.0f} GiB.")
