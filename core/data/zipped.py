"""Zip files of data files: members are unpacked one by one under names of our own, never by theirs.

Needs no torch.
"""

from __future__ import annotations

import lzma
import re
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from core.data.reading import plain_suffixes, suffixes
from core.errors import InvalidData
from core.files.archive import safe_members
from core.files.publish import require_space

_MOST_BYTES = 50 << 30
_VALIDATION = ("validation", "valid", "val", "dev", "eval")
_ABOUT = ("dataset_info.json", "dataset_infos.json", "state.json", "readme.md", "license.txt", "license.md")


@dataclass(frozen=True)
class Source:
    """One file of rows: where it lies, and what it is called."""

    path: Path
    name: str
    validation: bool = False
    """Whether its rows are for validation only."""
    unread: tuple[str, ...] = ()
    """Files beside it that are left unread, on the first of several sources: test splits, read-me files."""


def sources_of(path: Path, staging: Path, *, name: str = "", validation: bool = False) -> list[Source]:
    """The file itself, or the data files in a zip, unpacked into `staging`.

    Raises InvalidData, OutOfSpace.
    """
    name = name or path.name
    if Path(name).suffix.lower() != ".zip":
        return [Source(path, name, validation)]
    try:
        with zipfile.ZipFile(path) as archive:
            members = _checked(archive, name)
            splits = {member.filename: split_of(member.filename) for member in members}
            wanted = [member for member in members if _is_wanted(member, members, splits)]
            require_space(staging, sum(member.file_size for member in wanted))
            several = "train" in splits.values()
            found = [
                _unpack(
                    archive,
                    member,
                    staging,
                    name,
                    validation or (several and splits[member.filename] == "validation"),
                )
                for member in wanted
            ]
            return left_unread(found, [member.filename for member in members if member not in wanted])
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        raise InvalidData(f"{name} cannot be unpacked: {str(error)[:120]}.") from None


def _checked(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """The members that hold data. Raises InvalidData for anything that a sound archive does not hold."""
    members = safe_members(archive, name, _MOST_BYTES, InvalidData)
    found = [member for member in members if _is_data(member)]
    if not found:
        raise InvalidData(f"{name} holds no file that can be read; expected {', '.join(suffixes())}.")
    return sorted(found, key=lambda member: member.filename)


def split_of(path: str) -> str:
    """train, validation or test, by the words of a file's path."""
    words = set(re.split(r"[/\\._-]+", path.lower()))
    return "test" if "test" in words else "validation" if words & set(_VALIDATION) else "train"


def left_unread(sources: list[Source], names: Sequence[str]) -> list[Source]:
    """The sources, with what is not read among them said on the first."""
    return [replace(sources[0], unread=tuple(names)), *sources[1:]] if sources and names else sources


def _is_wanted(member: zipfile.ZipInfo, members: Sequence[zipfile.ZipInfo], splits: dict[str, str]) -> bool:
    """Beside rows, texts are read-me files; beside a training split, a test split is kept for tests."""
    if splits[member.filename] == "test" and "train" in splits.values():
        return False
    tables = [one for one in members if not one.filename.lower().endswith(plain_suffixes())]
    about = PurePosixPath(member.filename).name.lower() in _ABOUT
    return not about and (not tables or member in tables)


def _is_data(member: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(member.filename)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not member.is_dir() and not hidden and path.suffix.lower() in suffixes()


def _unpack(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, staging: Path, name: str, validation: bool
) -> Source:
    target = staging / f"member-{member.header_offset}{PurePosixPath(member.filename).suffix.lower()}"
    with archive.open(member) as packed, target.open("xb") as unpacked:
        shutil.copyfileobj(packed, unpacked, 1 << 20)  # zipfile ends at the announced size and checks the CRC
    return Source(target, f"{name}/{member.filename}", validation)
