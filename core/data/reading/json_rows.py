"""JSON: one object a line, or an array of objects of any size; each is also read under the other's name."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

from core.data.reading import MOST_LINE, BadRow, FileKind, NumberedRows, Row, RowReader, kind_of, shown
from core.data.reading._json_stream import DECODER, CutShort, items
from core.errors import InvalidData


class JsonRows(FileKind):
    """Lines of objects; or an array, which is read as a stream; or {"data": [...]}."""

    name, label, order = "json", "JSON", 10
    help = "One JSON object a line, or a list of objects."
    suffixes = (".jsonl", ".json")

    def read(self, reader: RowReader) -> NumberedRows:
        with reader.opened() as file:
            by_line = _is_lines(file, may_be_one=reader.suffix == ".jsonl")
            yield from _lines(reader, file) if by_line else _array(reader, file)


KIND = JsonRows()


def _lines(reader: RowReader, file: BinaryIO) -> NumberedRows:
    for number, line in enumerate(reader.lines(file), start=1):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            yield number, _parsed(line, f"Line {number}")


def _array(reader: RowReader, file: BinaryIO) -> NumberedRows:
    number = 0
    try:
        for number, value in enumerate(items(file, MOST_LINE), start=1):
            reader.position = file.tell()
            yield number, _object(value, f"Row {number}")
    except CutShort as error:
        if not number:
            raise InvalidData(
                f"{reader.name} is not valid JSON: {error}. Expected a list of rows [{{…}}, …]."
            ) from None
        lost = (
            f"what stands behind it, {1 - reader.position / reader.size:.0%} of the file or "
            "more, cannot be read"
        )
        yield number + 1, BadRow("cut_short", f"Row {number + 1} is not valid JSON ({error}); {lost}.")
        return
    if not number:
        raise InvalidData(
            f'{reader.name} holds no list of rows; expected [{{…}}, …] or {{"data": [{{…}}, …]}}.'
        )


def _parsed(line: bytes, where: str) -> Row | BadRow:
    try:
        return _object(DECODER.decode(line.decode("utf-8")), where)
    except UnicodeDecodeError as error:
        return BadRow("encoding", f"{where} is not UTF-8: byte {line[error.start]:#04x}.", shown(line))
    except json.JSONDecodeError as error:
        return BadRow(
            "unreadable", f"{where} is not valid JSON ({error.msg} at column {error.colno}).", shown(line)
        )
    except (
        RecursionError,
        ValueError,
    ) as error:  # a number with thousands of digits, a key that stands there twice
        return BadRow("unreadable", _cannot_be_read(where, error), shown(line))


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


def _first_byte(file: BinaryIO) -> bytes:
    """The first byte that is no white space; the file stays where it was."""
    at = file.tell()
    start = file.read(1 << 12).lstrip()[:1]
    file.seek(at)
    return start


def _is_lines(file: BinaryIO, *, may_be_one: bool) -> bool:
    """Whether the file is lines of objects: its first line is a whole object, and more follows.

    may_be_one: whether a lone object, or what is no JSON, is a line too.
    """
    start = _first_byte(file)
    if may_be_one or start != b"{":
        return may_be_one and start != b"["
    at = file.tell()
    line, more = file.readline(MOST_LINE), file.readline(MOST_LINE)
    file.seek(at)
    try:
        return bool(more.strip()) and isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
