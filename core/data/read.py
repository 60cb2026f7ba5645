"""Files of rows, read one row at a time with the number a person would find it by. Needs no torch.

A row is a mapping of column names to values. Its number is the line of a JSONL file, or the position from 1
elsewhere. A row that cannot be read comes out as a BadRow, and reading goes on behind it wherever the file's
format allows that.
"""

from __future__ import annotations

import csv
import json
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import pyarrow.parquet
from pyarrow import ArrowException

from core.data.json_stream import DECODER, CutShort, items
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
    """Iterates over (number, row) of one file. `position` says how many of
    its `size` bytes have been read.
    """

    def __init__(
        self, path: Path, *, name: str = "", by_line: bool = False, columns: Collection[str] | None = None
    ) -> None:
        """`name` is what messages call the file; by_line makes each line of a plain text a row; columns says
        which are wanted, where a file can be read by columns.

        Raises InvalidData for a kind of file that is not known, an empty one, or one that is no UTF-8 text at
        all.
        """
        self.path, self.name = path, name or path.name
        self.size, self.position = path.stat().st_size, 0
        self._by_line, self._columns = by_line, columns
        suffix = Path(self.name).suffix.lower()
        if suffix not in _READERS:
            raise InvalidData(
                f"{self.name}: files ending in {suffix or 'nothing'} cannot be read; use "
                f"{', '.join(SUFFIXES)}."
            )
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
            if _first_byte(file) == b"[":  # an array under the name of lines
                yield from self._json()
                return
            for number, line in enumerate(self._lines(file), start=1):
                if isinstance(line, BadRow):
                    yield number, line
                elif line.strip():
                    yield number, _parsed(line, f"Line {number}")

    def _json(self) -> NumberedRows:
        """An array of objects, read as a stream; or {"data": [...]}; or, under the wrong name, lines of
        objects.
        """
        with self._opened() as file:
            if _first_byte(file) == b"{" and _is_lines(file):
                yield from self._jsonl()
                return
            number = 0
            try:
                for number, value in enumerate(items(file, _MOST_LINE), start=1):
                    self.position = file.tell()
                    yield number, _object(value, f"Row {number}")
            except CutShort as error:
                if not number:
                    raise InvalidData(
                        f"{self.name} is not valid JSON: {error}. Expected a list of rows [{{…}}, …]."
                    ) from None
                lost = (
                    f"what stands behind it, {1 - self.position / self.size:.0%} of the file or "
                    "more, cannot be read"
                )
                yield (
                    number + 1,
                    BadRow("cut_short", f"Row {number + 1} is not valid JSON ({error}); {lost}."),
                )
                return
            if not number:
                raise InvalidData(
                    f'{self.name} holds no list of rows; expected [{{…}}, …] or {{"data": [{{…}}, …]}}.'
                )

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
                    "unreadable",
                    f"The line is {size} long; a row may have {_MOST_LINE >> 20} MB.",
                    _shown(line),
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
        """Each line by itself unless a quote is open at its end.

        A quote that is never closed costs its own line only.
        """
        csv.field_size_limit(_MOST_LINE)
        with self.path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            delimiter = (
                "\t"
                if Path(self.name).suffix.lower() == ".tsv"
                else _csv_delimiter(file.readline(_MOST_LINE))
            )
            file.seek(0)
            source = _CsvLines(file, self)
            try:
                columns = next(source.rows(delimiter), [])
            except csv.Error as error:
                raise InvalidData(f"{self.name}: the header is not valid CSV ({error}).") from None
            _check_header(self.name, columns)
            number = 0
            rows = source.rows(delimiter)
            while True:
                try:
                    cells = next(rows, None)
                except csv.Error as error:
                    number += 1
                    line, raw = source.give_back()
                    yield (
                        number,
                        BadRow(
                            "unreadable",
                            f"Line {line} is not valid CSV ({error}); check its quotes.",
                            _shown(raw),
                        ),
                    )
                    rows = source.rows(delimiter)
                    continue
                if cells is None:
                    return
                if cells:
                    number += 1
                    yield number, self._table_row(columns, cells, number, source.first_line)

    @staticmethod
    def _table_row(columns: list[str], cells: list[str], number: int, line: int) -> Row | BadRow:
        if len(cells) != len(columns):
            return BadRow(
                "unreadable",
                (
                    f"Row {number} (line {line}) has {len(cells)} columns, the header {len(columns)}; quote "
                    "text with separators."
                ),
                _shown(" | ".join(cells)),
            )
        return dict(zip(columns, cells, strict=True))

    def _parquet(self) -> NumberedRows:
        try:
            with pyarrow.parquet.ParquetFile(self.path) as file:
                names = file.schema_arrow.names
                _refuse_twin_columns(self.name, names)
                wanted = [name for name in names if self._columns is None or name in self._columns]
                number, total = 0, max(1, file.metadata.num_rows)
                for batch in file.iter_batches(batch_size=1024, columns=wanted):
                    for row in _batch_rows(batch, number):
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
        return BadRow(
            "encoding", f"The text is not UTF-8: byte {content[error.start]:#04x}.", _shown(content)
        )


def _parsed(line: bytes, where: str) -> Row | BadRow:
    try:
        return _object(DECODER.decode(line.decode("utf-8")), where)
    except UnicodeDecodeError as error:
        return BadRow("encoding", f"{where} is not UTF-8: byte {line[error.start]:#04x}.", _shown(line))
    except json.JSONDecodeError as error:
        return BadRow(
            "unreadable", f"{where} is not valid JSON ({error.msg} at column {error.colno}).", _shown(line)
        )
    except (
        RecursionError,
        ValueError,
    ) as error:  # a number with thousands of digits, a key that stands there twice
        return BadRow("unreadable", _cannot_be_read(where, error), _shown(line))


def _cannot_be_read(where: str, error: Exception) -> str:
    return (
        f"{where} is nested too deeply."
        if isinstance(error, RecursionError)
        else f"{where} cannot be read: {str(error)[:80]}."
    )


def _object(value: Any, where: str) -> Row | BadRow:
    if isinstance(value, dict):
        return value
    if isinstance(value, Exception):
        return BadRow("unreadable", _cannot_be_read(where, value))
    found = "null" if value is None else kind_of(value)
    return BadRow("unreadable", f"{where} is {found}; expected an object with named columns.")


def _batch_rows(batch: pyarrow.RecordBatch, before: int) -> Iterator[Row | BadRow]:
    """The rows of a batch; where one of them has no equal in Python, such as a date beyond the year 9999,
    that row is bad.
    """
    try:
        yield from batch.to_pylist()
    except (ArrowException, ValueError, OverflowError, KeyError, ImportError):
        for at in range(batch.num_rows):
            try:
                yield batch.slice(at, 1).to_pylist()[0]
            except (ArrowException, ValueError, OverflowError, KeyError, ImportError) as error:
                yield BadRow(
                    "unreadable",
                    f"Row {before + at + 1} cannot be read: {type(error).__name__}, {str(error)[:120]}.",
                )


class _CsvLines:
    """The lines of a table, of which those of a row that could not be read can be given back but for the
    first.
    """

    def __init__(self, file: TextIO, reader: RowReader) -> None:
        self._file, self._reader = file, reader
        self._held: list[str] = []  # the lines of the row at hand
        self._back: deque[str] = deque()
        self._line = 0
        self.first_line = 1

    def rows(self, delimiter: str) -> Iterator[list[str]]:
        """Rows of cells. Raises csv.Error."""
        for cells in csv.reader(self._lines(), delimiter=delimiter, strict=True):
            self.first_line = self._line - len(self._held) + 1
            self._held = []
            yield cells

    def _lines(self) -> Iterator[str]:
        while line := self._back.popleft() if self._back else self._file.readline(_MOST_LINE):
            self._line += 1
            self._held.append(line)
            self._reader.position += len(line)
            yield line

    def give_back(self) -> tuple[int, str]:
        """The number and the text of the line that the faulty row began with; those behind it will be read
        again.
        """
        first, *rest = self._held
        line = self._line - len(rest)
        self._back.extendleft(reversed(rest))
        self._reader.position -= sum(map(len, rest))
        self._line, self._held = line, []
        return line, first


def _first_byte(file: BinaryIO) -> bytes:
    """The first byte that is no white space; the file stays where it was."""
    at = file.tell()
    start = file.read(1 << 12).lstrip()[:1]
    file.seek(at)
    return start


def _shown(content: bytes | str) -> str:
    text = (
        content[: _KEPT_RAW * 4].decode("utf-8", errors="replace") if isinstance(content, bytes) else content
    )
    return text[:_KEPT_RAW].encode("utf-8", errors="replace").decode()


def _is_lines(file: BinaryIO) -> bool:
    """Whether a .json file is lines of objects in truth: its first line is a whole object,
    and more follows.
    """
    at = file.tell()
    line, more = file.readline(_MOST_LINE), file.readline(_MOST_LINE)
    file.seek(at)
    try:
        return bool(more.strip()) and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _check_header(name: str, columns: list[str]) -> None:
    if not columns:
        raise InvalidData(f"{name} holds no rows.")
    if any(0xDC80 <= ord(char) <= 0xDCFF for column in columns for char in column):
        raise InvalidData(
            f"{name}: the header is not UTF-8; save the file as UTF-8 (it may be Latin-1 or Windows-1252)."
        )
    if columns.count("") > 1:
        raise InvalidData(f"{name} has {columns.count('')} columns without a name; give each one.")
    _refuse_twin_columns(name, columns)


def _refuse_twin_columns(name: str, columns: list[str]) -> None:
    twins = sorted(column for column, count in Counter(columns).items() if count > 1)
    if twins:
        raise InvalidData(
            f"{name} has several columns called {twins[0][:40]!r}; give each a name of its own."
        )


def _csv_delimiter(header: str) -> str:
    """The separator that splits the header into most columns; a comma if none does."""
    return max((",", ";", "\t", "|"), key=header.count)


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
