"""Packed data files, by themselves or in a zip: unpacked one by one under names of our own, never by theirs.

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

from core.data.gzipped import GZIP, gunzip, is_gzipped
from core.data.reading import plain_suffixes, suffix_of, suffixes
from core.errors import InvalidData
from core.files.archive import safe_members
from core.files.disk_faults import is_disk_fault
from core.files.publish import require_space

_MOST_BYTES = 50 << 30
_ZIP = ".zip"
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
    """The file itself, unpacked into `staging` if it is packed with gzip, or the data files in a zip.

    Raises InvalidData, OutOfSpace.
    """
    name = name or path.name
    if Path(name).suffix.lower() != _ZIP:
        return [Source(unpacked(path, staging / "unpacked", name), name, validation)]
    try:
        with zipfile.ZipFile(path) as archive:
            members = _checked(archive, name)
            kept = wanted_of([member.filename for member in members])
            wanted = [member for member in members if member.filename in kept]
            require_space(staging, sum(member.file_size for member in wanted))
            found = [
                _unpack(archive, member, staging, name, validation or kept[member.filename])
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
        if is_disk_fault(error):
            raise
        raise InvalidData(f"{name} cannot be unpacked: {str(error)[:120]}.") from None


def readable() -> tuple[str, ...]:
    """What names of files that can be brought in end in, packed ones too."""
    return (*suffixes(), GZIP, _ZIP)


def unpacked(path: Path, target: Path, name: str) -> Path:
    """The file itself, or the new file `target` with what it holds if it is packed with gzip.

    Raises InvalidData, OutOfSpace.
    """
    if not is_gzipped(path):
        return path
    gunzip(path, target, name, _MOST_BYTES)
    return target


def _checked(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """The members that hold data. Raises InvalidData for anything that a sound archive does not hold."""
    members = safe_members(archive, name, _MOST_BYTES, InvalidData)
    found = [member for member in members if not member.is_dir() and is_data(member.filename)]
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


def wanted_of(names: Sequence[str]) -> dict[str, bool]:
    """Those of several data files that are read, each with whether its rows are for validation only.

    Beside rows, texts are read-me files; beside a training split, a test split is kept for tests.
    """
    splits = {name: split_of(name) for name in names}
    tables = [name for name in names if suffix_of(name) not in plain_suffixes()]
    several = "train" in splits.values()
    return {
        name: several and splits[name] == "validation"
        for name in names
        if not (several and splits[name] == "test")
        and PurePosixPath(name).name.lower() not in _ABOUT
        and (not tables or name in tables)
    }


def is_data(name: str) -> bool:
    """Whether a file of this name, with the folders above it, is read: not hidden, and of a known kind."""
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not hidden and suffix_of(path.name) in suffixes()


def _unpack(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, staging: Path, name: str, validation: bool
) -> Source:
    target = staging / f"member-{member.header_offset}{PurePosixPath(member.filename).suffix.lower()}"
    with archive.open(member) as packed, target.open("xb") as file:
        shutil.copyfileobj(packed, file, 1 << 20)  # zipfile ends at the announced size and checks the CRC
    shown = f"{name}/{member.filename}"
    return Source(unpacked(target, target.with_suffix(".unpacked"), shown), shown, validation)
