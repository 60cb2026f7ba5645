"""Files of rows, read one row at a time with the number a person would find it by. Needs no torch.

A row is a mapping of column names to values. Its number is the line of a JSONL file, or the position from 1 elsewhere.
A row that cannot be read comes out as a BadRow, and reading goes on behind it wherever the file's format allows that.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import pyarrow.parquet
from pyarrow import ArrowException

from core.errors import InvalidData

Row = dict[str, Any]
_MOST_LINE = 32 << 20  # bytes of one row; longer ones are broken files
_KEPT_RAW = 20_000  # characters of an unreadable row that are kept to show
_DOCUMENT = 1 << 20  # a plain text longer than this becomes several rows, cut at line ends
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read: a finding's code, the reason, and what stands there."""

    code: str
    detail: str
    raw: str = ""


NumberedRows = Iterator[tuple[int, Row | BadRow]]


class RowReader:
    """Iterates over (number, row) of one file. `position` says how many of its `size` bytes have been read."""

    def __init__(self, path: Path, *, name: str = "", by_line: bool = False) -> None:
        """`name` is what messages call the file; by_line makes each line of a plain text a row.

        Raises InvalidData for a kind of file that is not known, an empty one, or one that is no UTF-8 text at all.
        """
        self.path, self.name = path, name or path.name
        self.size, self.position = path.stat().st_size, 0
        self._by_line = by_line
        suffix = Path(self.name).suffix.lower()
        if suffix not in _READERS:
            raise InvalidData(f"{self.name}: files ending in {suffix or 'nothing'} cannot be read; use {', '.join(SUFFIXES)}.")
        if self.size == 0:
            raise InvalidData(f"{self.name} is empty.")
        self._read: Callable[[RowReader], NumberedRows] = _READERS[suffix]
        if suffix != ".parquet":
            self._refuse_utf16()

    def __iter__(self) -> NumberedRows:
        return self._read(self)

    def _refuse_utf16(self) -> None:
        with self.path.open("rb") as file:
            start = file.read(4)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
            raise InvalidData(f"{self.name} is not UTF-8 text (it looks like UTF-16); save it as UTF-8.")

    # JSON.

    def _jsonl(self) -> NumberedRows:
        with self._opened() as file:
            for number, line in enumerate(self._lines(file), start=1):
                if isinstance(line, BadRow):
                    yield number, line
                elif line.strip():
                    yield number, _parsed(line, f"Line {number}")

    def _json(self) -> NumberedRows:
        """An array of objects, read as a stream; or {"data": [...]}; or, under the wrong name, lines of objects."""
        with self._opened() as file:
            start = file.read(1 << 16)
            file.seek(self.position)
            if _is_lines(start):
                yield from self._jsonl()
                return
            prefix = "item" if start.lstrip()[:1] == b"[" else "data.item"
            number = 0
            try:
                for number, value in enumerate(ijson.items(file, prefix, use_float=True), start=1):
                    self.position = file.tell()
                    yield number, _object(value, f"Row {number}")
            except (ijson.JSONError, UnicodeDecodeError, RecursionError, OverflowError) as error:
                words = str(error).replace("parse error: ", "").splitlines()
                reason = words[0].strip()[:120] if words else type(error).__name__
                if not number:
                    raise InvalidData(f"{self.name} is not valid JSON: {reason}. Expected a list of rows [{{…}}, …].") from None
                yield (
                    number + 1,
                    BadRow("unreadable", f"Row {number + 1} is not valid JSON ({reason}); nothing behind it can be read."),
                )
                return
            if not number:
                raise InvalidData(f'{self.name} holds no list of rows; expected [{{…}}, …] or {{"data": [{{…}}, …]}}.')

    def _opened(self) -> BinaryIO:
        """The file behind its byte order mark."""
        file = self.path.open("rb")
        start = file.read(3)
        self.position = 3 if start == _BOM else 0
        file.seek(self.position)
        return file

    def _lines(self, file: BinaryIO) -> Iterator[bytes | BadRow]:
        while line := file.readline(_MOST_LINE):
            length = len(line)
            if length == _MOST_LINE and not line.endswith(b"\n"):
                length += self._rest_of_line(file)
                size = f"{length / 1e6:,.0f} MB"
                line_or_bad: bytes | BadRow = BadRow(
                    "unreadable", f"The line is {size} long; a row may have {_MOST_LINE >> 20} MB.", _shown(line)
                )
            else:
                line_or_bad = line
            self.position += length
            yield line_or_bad

    @staticmethod
    def _rest_of_line(file: BinaryIO) -> int:
        length = 0
        while part := file.readline(1 << 20):
            length += len(part)
            if part.endswith(b"\n"):
                break
        return length

    # Tables.

    def _csv(self) -> NumberedRows:
        csv.field_size_limit(_MOST_LINE)
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            header = file.readline(_MOST_LINE)
            delimiter = "\t" if Path(self.name).suffix.lower() == ".tsv" else _csv_delimiter(header)
            file.seek(0)
            reader = csv.reader(self._counted(file), delimiter=delimiter, strict=True)
            try:
                columns = next(reader)
                _refuse_twin_columns(self.name, columns)
                for number, cells in enumerate((cells for cells in reader if cells), start=1):
                    yield number, self._table_row(columns, cells, number, reader.line_num)
            except csv.Error as error:
                if reader.line_num < 2:
                    raise InvalidData(f"{self.name}: line {reader.line_num} is not valid CSV ({error}).") from None
                yield (
                    reader.line_num,
                    BadRow("unreadable", f"Line {reader.line_num} is not valid CSV ({error}); nothing behind it can be read."),
                )

    def _counted(self, file: Any) -> Iterator[str]:
        for line in file:
            self.position += len(line)
            yield line

    @staticmethod
    def _table_row(columns: list[str], cells: list[str], number: int, line: int) -> Row | BadRow:
        if len(cells) != len(columns):
            return BadRow(
                "unreadable",
                f"Row {number} (line {line}) has {len(cells)} columns, the header {len(columns)}; quote text with separators.",
                _shown(" | ".join(cells)),
            )
        return dict(zip(columns, cells, strict=True))

    def _parquet(self) -> NumberedRows:
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                number, total = 0, max(1, file.metadata.num_rows)
                for batch in file.iter_batches(batch_size=1024):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
                    self.position = self.size * number // total
        except (ArrowException, OSError) as error:
            raise InvalidData(f"{self.name} is not a readable Parquet file: {str(error)[:200]}") from None

    # Plain text.

    def _text(self) -> NumberedRows:
        with self._opened() as file:
            if self._by_line:
                for number, line in enumerate(self._lines(file), start=1):
                    if isinstance(line, BadRow):
                        yield number, line
                    elif line.strip():
                        yield number, _text_row(line.rstrip(b"\r\n"))
                return
            number, length = 0, 0
            parts: list[bytes] = []
            for line in self._lines(file):
                if isinstance(line, BadRow):
                    number += 1
                    yield number, line
                    continue
                if length + len(line) > _DOCUMENT and parts:
                    number += 1
                    yield number, _text_row(b"".join(parts))
                    parts, length = [], 0
                parts.append(line)
                length += len(line)
            if parts:
                yield number + 1, _text_row(b"".join(parts))


def _text_row(content: bytes) -> Row | BadRow:
    try:
        return {"text": content.decode("utf-8")}
    except UnicodeDecodeError as error:
        return BadRow("encoding", f"The text is not UTF-8: byte {content[error.start]:#04x}.", _shown(content))


def _parsed(line: bytes, where: str) -> Row | BadRow:
    try:
        return _object(json.loads(line), where)
    except UnicodeDecodeError as error:
        return BadRow("encoding", f"{where} is not UTF-8: byte {line[error.start]:#04x}.", _shown(line))
    except json.JSONDecodeError as error:
        return BadRow("unreadable", f"{where} is not valid JSON ({error.msg} at column {error.colno}).", _shown(line))
    except RecursionError:
        return BadRow("unreadable", f"{where} is nested too deeply.", _shown(line))
    except ValueError as error:  # a number with thousands of digits
        return BadRow("unreadable", f"{where} cannot be read ({str(error)[:80]}).", _shown(line))


def _object(value: Any, where: str) -> Row | BadRow:
    if isinstance(value, dict):
        return value
    return BadRow("unreadable", f"{where} is {kind_of(value)}; expected an object with named columns.", _shown(repr(value)))


def _shown(content: bytes | str) -> str:
    text = content[: _KEPT_RAW * 4].decode("utf-8", errors="replace") if isinstance(content, bytes) else content
    return text[:_KEPT_RAW].encode("utf-8", errors="replace").decode()


def _is_lines(start: bytes) -> bool:
    """Whether a .json file is lines of objects in truth: its first line is a whole object, and more follows."""
    line, newline, rest = start.lstrip().partition(b"\n")
    if not line.startswith(b"{") or not newline or not rest.strip():
        return False
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _refuse_twin_columns(name: str, columns: list[str]) -> None:
    twins = sorted({column for column in columns if columns.count(column) > 1})
    if twins:
        raise InvalidData(f"{name} has several columns called {twins[0][:40]!r}; give each a name of its own.")


def _csv_delimiter(header: str) -> str:
    """The separator that splits the header into most columns; a comma if none does."""
    return max((",", ";", "\t", "|"), key=header.count)


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "missing" if value is None else names.get(type(value), type(value).__name__)


_READERS: dict[str, Callable[[RowReader], NumberedRows]] = {
    ".jsonl": RowReader._jsonl,
    ".json": RowReader._json,
    ".csv": RowReader._csv,
    ".tsv": RowReader._csv,
    ".parquet": RowReader._parquet,
    ".txt": RowReader._text,
    ".md": RowReader._text,
}
SUFFIXES = tuple(_READERS)
PLAIN_SUFFIXES = (".txt", ".md")
