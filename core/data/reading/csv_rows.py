"""CSV and TSV, with whatever separator splits the lines into the columns of the header."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterator, Sequence
from io import TextIOWrapper
from typing import TextIO

from core.data.reading import (
    MOST_LINE,
    BadRow,
    FileKind,
    NumberedRows,
    Row,
    RowReader,
    refuse_twin_columns,
    shown,
    size_of,
    too_long,
)
from core.errors import InvalidData

_SEPARATORS = (",", ";", "\t", "|")
_LOOKED_AT = 20  # lines that show the separator
_SAID = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # a first line of Excel's


class CsvRows(FileKind):
    """Each line by itself unless a quote is open at its end: a quote that is never closed costs its own line
    only.
    """

    name, label, order = "table", "CSV and TSV", 20
    help = "A header with the columns' names, and a line for each row."
    suffixes = (".csv", ".tsv")

    def read(self, reader: RowReader) -> NumberedRows:
        csv.field_size_limit(MOST_LINE)
        with reader.opened() as binary:
            file = TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
            source = _Lines(file, reader)
            delimiter = source.to_header(preferred="\t" if reader.suffix == ".tsv" else "")
            try:
                columns = next(source.rows(delimiter), [])
            except csv.Error as error:
                raise InvalidData(f"{reader.name}: the header is not valid CSV ({error}).") from None
            _check_header(reader.name, columns)
            reader.header = tuple(columns)
            yield from _rows(source, delimiter, columns)


KIND = CsvRows()


class _LongLine(str):
    """The start of a line of more than MOST_LINE characters, of which the rest is not kept."""

    length: int


class _LongLineMet(csv.Error):
    """Such a line was met."""


def _rows(source: _Lines, delimiter: str, columns: list[str]) -> NumberedRows:
    number, rows = 0, source.rows(delimiter)
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:
            number += 1
            yield number, _broken(number, source, error)
            rows = source.rows(delimiter)
            continue
        if cells is None:
            return
        if cells:
            number += 1
            yield number, _row(columns, cells, number, source)


def _broken(number: int, source: _Lines, error: csv.Error) -> BadRow:
    line, raw = source.give_back()
    if isinstance(raw, _LongLine):
        return too_long(f"Row {number} (line {line})", raw.length, raw)
    return BadRow("unreadable", f"Line {line} is not valid CSV ({error}); check its quotes.", shown(raw))


def _row(columns: list[str], cells: list[str], number: int, source: _Lines) -> Row | BadRow:
    where = f"Row {number} (line {source.first_line})"
    if source.row_size > MOST_LINE:
        return too_long(where, source.row_size, cells[0])
    if len(cells) == len(columns):
        return dict(zip(columns, cells, strict=True))
    advice = (
        "quote text with separators"
        if len(cells) > len(columns)
        else "quote text with line ends, and leave no cell out"
    )
    said = f"{where} has {len(cells)} columns, the header {len(columns)}; {advice}."
    return BadRow("unreadable", said, shown(" | ".join(cells)))


class _Lines:
    """The lines of a table, of which those of a row that could not be read can be given back but for the
    first.
    """

    def __init__(self, file: TextIO, reader: RowReader) -> None:
        self._file, self._reader = file, reader
        self._held: list[str] = []  # the lines of the row at hand
        self._back: deque[str] = deque()
        self._line = 0
        self.first_line = 1
        self.row_size = 0
        """Bytes of the row at hand, if it may be too long."""

    def to_header(self, preferred: str) -> str:
        """Go to the header, over blank lines and over Excel's sep=; the separator that splits its lines."""
        while line := self._next():
            said = _SAID.fullmatch(line)
            if not said and line.strip(' \t\r\n,;|"'):
                break
            preferred = said.group(1) if said else preferred
            self._line += 1
            self._reader.position += len(line)
        start = [line, *(self._next() for _ in range(_LOOKED_AT))]
        self._back.extendleft(reversed([one for one in start if one]))
        return preferred if preferred and preferred in line else _delimiter([one for one in start if one])

    def rows(self, delimiter: str) -> Iterator[list[str]]:
        """Rows of cells. Raises csv.Error."""
        for cells in csv.reader(self._lines(), delimiter=delimiter, strict=True):
            self.first_line = self._line - len(self._held) + 1
            self.row_size = sum(map(size_of, self._held))
            self._held = []
            yield cells

    def _lines(self) -> Iterator[str]:
        while line := self._next():
            self._line += 1
            self._held.append(line)
            self._reader.position += len(line)
            if isinstance(line, _LongLine):
                raise _LongLineMet
            yield line

    def _next(self) -> str:
        """The next line with its end; empty behind the last."""
        if self._back:
            return self._back.popleft()
        line = self._file.readline(MOST_LINE)
        if len(line) < MOST_LINE or line.endswith("\n"):
            return line
        long = _LongLine(line[: 1 << 16])
        long.length = len(line.encode("utf-8", "surrogateescape"))
        while (part := self._file.readline(1 << 20)) and not part.endswith("\n"):
            long.length += len(part.encode("utf-8", "surrogateescape"))
        return long

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


def _check_header(name: str, columns: list[str]) -> None:
    if not columns:
        raise InvalidData(f"{name} holds no rows.")
    if any(0xDC80 <= ord(char) <= 0xDCFF for column in columns for char in column):
        raise InvalidData(
            f"{name}: the header is not UTF-8; save the file as UTF-8 (it may be Latin-1 or Windows-1252)."
        )
    if columns.count("") > 1:
        raise InvalidData(f"{name} has {columns.count('')} columns without a name; give each one.")
    refuse_twin_columns(name, columns)


def _delimiter(lines: Sequence[str]) -> str:
    """The separator that splits most lines into as many cells as the header, else the header into most; a
    comma if none splits it.
    """
    found = [one for one in _SEPARATORS if lines and one in lines[0]]
    if len(found) < 2:
        return found[0] if found else ","
    return max(found, key=lambda one: _fit(lines, one))


def _fit(lines: Sequence[str], delimiter: str) -> tuple[float, int]:
    """The share of the rows with as many cells as the header, and how many these are."""
    try:
        header, *rows = [cells for cells in csv.reader(lines, delimiter=delimiter) if cells]
    except csv.Error:
        return 0.0, 0
    whole = rows[:-1] or rows  # the last may be cut off
    share = sum(len(cells) == len(header) for cells in whole) / max(1, len(whole))
    return (share if len(header) > 1 else 0.0), len(header)
