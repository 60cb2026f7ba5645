"""Data files packed with gzip, whatever they are called: unpacked before they are read. Needs no torch."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import BinaryIO

from core.errors import InvalidData
from core.files.archive import require_no_bomb
from core.files.disk_faults import is_disk_fault
from core.files.publish import require_space

GZIP = ".gz"
_MAGIC = b"\x1f\x8b"
_CHUNK = 16 << 20
_TAR = slice(257, 262)  # where a tar archive says "ustar"


def is_gzipped(path: Path) -> bool:
    """Whether a file is packed with gzip, by its first bytes: others are called .gz, and these otherwise."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def gunzip(path: Path, target: Path, name: str, most_bytes: int) -> None:
    """Unpack a file into the new file `target`; `name` is what messages call it.

    What a gzip file says of its size need not be true, so the limits are kept while it is unpacked. Raises
    InvalidData, OutOfSpace.
    """
    packed = path.stat().st_size
    try:
        with gzip.open(path, "rb") as source, target.open("xb") as unpacked:
            while part := source.read(_CHUNK):
                _require_data(part, unpacked, name)
                require_no_bomb(name, "it", unpacked.tell() + len(part), packed, most_bytes, InvalidData)
                require_space(target.parent, len(part))
                unpacked.write(part)
    except (EOFError, OSError, zlib.error) as error:
        if is_disk_fault(error):
            raise
        raise InvalidData(f"{name} cannot be unpacked: {str(error)[:120]}.") from None


def _require_data(part: bytes, unpacked: BinaryIO, name: str) -> None:
    if unpacked.tell() == 0 and part[_TAR] == b"ustar":
        raise InvalidData(
            f"{name} holds a tar archive; unpack it, and give the files in it or a zip of them."
        )
