"""CSV and TSV, with whatever separator splits the header."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
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
)
from core.errors import InvalidData


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
            delimiter = "\t" if reader.suffix == ".tsv" else _delimiter(file.readline(MOST_LINE))
            file.seek(0)
            source = _Lines(file, reader)
            try:
                columns = next(source.rows(delimiter), [])
            except csv.Error as error:
                raise InvalidData(f"{reader.name}: the header is not valid CSV ({error}).") from None
            _check_header(reader.name, columns)
            reader.header = tuple(columns)
            yield from _rows(source, delimiter, columns)


KIND = CsvRows()


def _rows(source: _Lines, delimiter: str, columns: list[str]) -> NumberedRows:
    number, rows = 0, source.rows(delimiter)
    while True:
        try:
            cells = next(rows, None)
        except csv.Error as error:
            number += 1
            line, raw = source.give_back()
            said = f"Line {line} is not valid CSV ({error}); check its quotes."
            yield number, BadRow("unreadable", said, shown(raw))
            rows = source.rows(delimiter)
            continue
        if cells is None:
            return
        if cells:
            number += 1
            yield number, _row(columns, cells, number, source.first_line)


def _row(columns: list[str], cells: list[str], number: int, line: int) -> Row | BadRow:
    if len(cells) != len(columns):
        return BadRow(
            "unreadable",
            (
                f"Row {number} (line {line}) has {len(cells)} columns, the header {len(columns)}; quote "
                "text with separators."
            ),
            shown(" | ".join(cells)),
        )
    return dict(zip(columns, cells, strict=True))


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

    def rows(self, delimiter: str) -> Iterator[list[str]]:
        """Rows of cells. Raises csv.Error."""
        for cells in csv.reader(self._lines(), delimiter=delimiter, strict=True):
            self.first_line = self._line - len(self._held) + 1
            self._held = []
            yield cells

    def _lines(self) -> Iterator[str]:
        while line := self._back.popleft() if self._back else self._file.readline(MOST_LINE):
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


def _delimiter(header: str) -> str:
    """The separator that splits the header into most columns; a comma if none does."""
    return max((",", ";", "\t", "|"), key=header.count)
