"""Files of rows: each kind of file is one file here; see core/seam.py. Needs no torch.

A row is a mapping of column names to values. Its number is the line of a JSONL file, or the position from 1
elsewhere. A row that cannot be read comes out as a BadRow, and reading goes on behind it wherever the file's
format allows that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from core.errors import InvalidData
from core.seam import Seam

Row = dict[str, Any]
MOST_LINE = 32 << 20  # bytes of one row; longer ones are broken files
_KEPT_RAW = 20_000  # characters of an unreadable row that are kept to show
_BOM = b"\xef\xbb\xbf"
_LOOKED_AT = 64  # bytes that show another kind of file
_PARQUET = b"PAR1"
_UNPACK = "unpack it and give the file that is inside."
_OTHERS = {
    b"\x1f\x8b": f"is packed with gzip; {_UNPACK}",
    b"BZh": f"is packed with bzip2; {_UNPACK}",
    b"\xfd7zXZ": f"is packed with xz; {_UNPACK}",
    b"\x28\xb5\x2f\xfd": f"is packed with zstd; {_UNPACK}",
    b"7z\xbc\xaf": f"is packed with 7-Zip; {_UNPACK}",
    b"PK\x03\x04": "is a zip or an Excel file; call a zip .zip, and save a table as CSV.",
    b"\xd0\xcf\x11\xe0": "is an Excel or Word file; save it as CSV or text.",
    _PARQUET: "is a Parquet file; call it .parquet.",
    b"ARROW1": "is an Arrow file; save it as Parquet or JSONL.",
    b"SQLite format 3": "is a SQLite database; save its rows as CSV or JSONL.",
    b"%PDF": "is a PDF; save its text as .txt.",
    b"version https://git-lfs": "is only a pointer of Git LFS; fetch the file itself (git lfs pull).",
}
_WEB_PAGE = re.compile(rb"\s*<(?:!doctype\s+html|html)[\s>]", re.IGNORECASE)


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read: a finding's code, the reason, and what stands there."""

    code: str
    detail: str
    raw: str = ""


NumberedRows = Iterator[tuple[int, Row | BadRow]]


class FileKind:
    """One kind of file of rows."""

    name: str
    label: str
    help: str
    order: int = 100
    suffixes: tuple[str, ...]
    """What names of such files end in, in lower case and with the dot."""
    plain: bool = False
    """Whether it is plain text: rows of one column, text, which are lines or whole documents."""

    def read(self, reader: RowReader) -> NumberedRows:
        """All rows of reader's file, which is opened once.

        Raises InvalidData if it cannot be read at all.
        """
        raise NotImplementedError


FILE_KINDS: Seam[FileKind] = Seam("core.data.reading", FileKind, "kind of file")


def suffix_of(name: str) -> str:
    """What a name ends in but for .gz; the end before .txt, where something put that behind another."""
    path = Path(name.lower().removesuffix(".gz"))
    inner = path.with_suffix("").suffix
    return inner if path.suffix == ".txt" and inner in suffixes() else path.suffix


def suffixes() -> tuple[str, ...]:
    """What names of files that can be read end in."""
    return tuple(suffix for kind in FILE_KINDS.all().values() for suffix in kind.suffixes)


def plain_suffixes() -> tuple[str, ...]:
    """Those of plain texts."""
    return tuple(suffix for kind in FILE_KINDS.all().values() if kind.plain for suffix in kind.suffixes)


class RowReader:
    """Iterates over (number, row) of one file. `position` says how many of
    its `size` bytes have been read.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str = "",
        by_line: bool = False,
        skips: Callable[[str], bool] = lambda column: False,
    ) -> None:
        """`name` is what messages call the file; by_line makes each line of a plain text a row; skips says
        whether a column is not to be read, where a file can be read by columns.

        Raises InvalidData for a kind of file that is not known, or an empty one. The file is opened when it
        is iterated over, which raises it for a file that is of another kind than its name says.
        """
        self.path, self.name = path, name or path.name
        self.size, self.position = path.stat().st_size, 0
        self.by_line, self.skips = by_line, skips
        self.suffix = suffix_of(self.name)
        self.kind = self._kind()
        self.header: tuple[str, ...] = ()
        """All columns of a file that names them before its rows, once the first row is there."""
        self.unread: tuple[str, ...] = ()
        """What else the file holds and is left unread, once all rows are read."""
        self.beside: dict[str, int] = {}
        """Columns that were not read, with the rows that have a value there."""
        self._kept: BinaryIO | None = None
        if self.size == 0:
            raise InvalidData(f"{self.name} is empty.")

    def _kind(self) -> FileKind:
        found = next((kind for kind in FILE_KINDS.all().values() if self.suffix in kind.suffixes), None)
        if found is None:
            raise InvalidData(
                f"{self.name}: files ending in {self.suffix or 'nothing'} cannot be read; use "
                f"{', '.join(suffixes())}."
            )
        return found

    def refuse_others(self, file: BinaryIO) -> None:
        """Raises InvalidData for what is known to be another kind of file than its name says."""
        file.seek(0)
        start = file.read(_LOOKED_AT)
        for begins, what in _OTHERS.items():
            if start.startswith(begins) and not (begins == _PARQUET and self.suffix == ".parquet"):
                raise InvalidData(f"{self.name} {what}")
        if not self.kind.plain and _WEB_PAGE.match(start):
            raise InvalidData(f"{self.name} is a web page, not the file itself; download that.")

    def __iter__(self) -> NumberedRows:
        return self.kind.read(self)

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """A text file, behind its byte order mark. Raises InvalidData if it is UTF-16."""
        if self._kept is not None:
            self._to_start(self._kept)
            yield self._kept
            return
        with self.path.open("rb") as file:
            self._to_start(file)
            yield file

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Iterate over a text file several times in one opening, here with by_line and there without."""
        with self.path.open("rb") as self._kept:
            yield
        self._kept = None

    def _to_start(self, file: BinaryIO) -> None:
        self.refuse_others(file)
        file.seek(0)
        start = file.read(4)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
            raise InvalidData(f"{self.name} is not UTF-8 text (it looks like UTF-16); save it as UTF-8.")
        self.position = 3 if start[:3] == _BOM else 0
        file.seek(self.position)

    def lines(self, file: BinaryIO) -> Iterator[bytes | BadRow]:
        """The lines of a file with their ends; one of more than MOST_LINE bytes is a BadRow."""
        while line := file.readline(MOST_LINE):
            length = len(line)
            if length == MOST_LINE and not line.endswith(b"\n"):
                length += _rest_of_line(file)
                line_or_bad: bytes | BadRow = too_long("The line", length, line)
            else:
                line_or_bad = line
            self.position += length
            yield line_or_bad


def too_long(where: str, size: int, content: bytes | str = b"") -> BadRow:
    """A row of more than MOST_LINE bytes, which is the limit in every kind of file."""
    said = f"{where} is {size / 1e6:,.0f} MB long; a row may have {MOST_LINE >> 20} MB."
    return BadRow("unreadable", said, shown(content))


def size_of(text: str) -> int:
    """The bytes of a text, counted only where they may be too many."""
    return len(text) if 4 * len(text) < MOST_LINE else len(text.encode("utf-8", "surrogateescape"))


def _rest_of_line(file: BinaryIO) -> int:
    length = 0
    while part := file.readline(1 << 20):
        length += len(part)
        if part.endswith(b"\n"):
            break
    return length


def shown(content: bytes | str) -> str:
    """What is kept of a row that cannot be read."""
    text = (
        content[: _KEPT_RAW * 4].decode("utf-8", errors="replace") if isinstance(content, bytes) else content
    )
    return text[:_KEPT_RAW].encode("utf-8", errors="replace").decode()


def refuse_twin_columns(name: str, columns: Sequence[str]) -> None:
    """Raises InvalidData if two columns have one name."""
    twins = sorted(column for column, count in Counter(columns).items() if count > 1)
    if twins:
        raise InvalidData(
            f"{name} has several columns called {twins[0][:40]!r}; give each a name of its own."
        )


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "text",
        list: "a list",
        dict: "an object",
    }
    names |= {bytes: "binary data"}
    return "missing" if value is None else names.get(type(value), f"of the kind {type(value).__name__}")
