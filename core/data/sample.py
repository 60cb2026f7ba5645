"""The first rows of a file: read once, kept for detection, for previews and for changes of the mapping.

Needs no torch.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from core.data.folders import first_file
from core.data.reading import BadRow, NumberedRows, Row, RowReader
from core.data.zipped import sources_of
from core.errors import InvalidData

_SAMPLE, _LOOKED_AT = 200, 5000  # sound rows to judge by, and rows to find them among
_SHOWN_FROM = 500  # rows that a preview is made from: chains of linked rows are spread over the file
_DOCUMENTS = 3  # of a plain text, which are up to 1 MB each
_MOST_BYTES = 64 << 20  # kept of one file; fewer rows are judged by where they are very long
_KEPT = 4  # files


@dataclass(frozen=True)
class Sample:
    """Rows from the start of a file, with their numbers and those that cannot be read."""

    name: str
    plain: bool
    """Whether it is a plain text; `rows` are its lines then, and `documents` the same text in long pieces."""
    rows: Sequence[tuple[int, Row | BadRow]]
    documents: Sequence[tuple[int, Row | BadRow]] = ()

    @property
    def good(self) -> list[Row]:
        """The rows to judge by, at least one."""
        return [row for _, row in self.rows if not isinstance(row, BadRow)][:_SAMPLE]

    def first(self, *, by_line: bool) -> NumberedRows:
        """The rows to make a preview from; by_line as for RowReader."""
        rows = self.documents if self.plain and not by_line else self.rows
        return iter(rows[:_SHOWN_FROM])


def sample_of(path: Path, name: str = "") -> Sample:
    """The first rows of a file, or of the first file of rows in a zip or a folder. It is read again only when
    it changed.

    Raises InvalidData if no row can be read.
    """
    path = first_file(path)
    about = path.stat()
    return _sample_of(path, name or path.name, about.st_size, about.st_mtime_ns, about.st_ino)


@lru_cache(maxsize=_KEPT)
def _sample_of(path: Path, name: str, *identity: int) -> Sample:
    """identity: size, time of the last change and inode, of which another one means another file."""
    with tempfile.TemporaryDirectory(prefix="look-") as staging:
        source = sources_of(path, Path(staging), name=name)[0]
        reader = RowReader(source.path, name=source.name, by_line=True)
        if not reader.kind.plain:
            return Sample(reader.name, False, _start(reader))
        with reader.kept_open():
            lines = _start(reader)
            reader.by_line = False
            return Sample(reader.name, True, lines, list(itertools.islice(reader, _DOCUMENTS)))


def _start(reader: RowReader) -> list[tuple[int, Row | BadRow]]:
    """The rows to keep. Raises InvalidData if none of them can be read."""
    rows: list[tuple[int, Row | BadRow]] = []
    sound = 0
    for number, row in itertools.islice(reader, _LOOKED_AT):
        rows.append((number, row))
        sound += not isinstance(row, BadRow)
        enough = sound >= _SAMPLE and len(rows) >= _SHOWN_FROM
        if enough or (sound and reader.position > _MOST_BYTES):
            break
    if not rows:
        raise InvalidData(f"{reader.name} holds no rows.")
    number, row = rows[0]
    if not sound and isinstance(row, BadRow):
        raise InvalidData(f"{reader.name}: none of its first rows can be read. Row {number}: {row.detail}")
    return rows
