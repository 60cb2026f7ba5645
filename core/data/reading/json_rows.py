"""JSON: one object a line, or a list of objects of any size; each is also read under the other's name.

A conversation may stand there by itself, as a list of turns.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from core.data.reading import (
    MOST_LINE,
    BadRow,
    FileKind,
    NumberedRows,
    Row,
    RowReader,
    kind_of,
    shown,
    too_long,
)
from core.data.reading._json_stream import DECODER, CutShort, Lists, TooLong, items, members
from core.data.turns import are_turns, is_turn
from core.errors import InvalidData

# Keys under which an object holds its rows, the likeliest first; and those that hold rows for other ends.
_ROWS = (
    "data",
    "train",
    "training",
    "rows",
    "examples",
    "instances",
    "records",
    "samples",
    "items",
    "dataset",
)
_HELD_BACK = ("validation", "valid", "val", "dev", "eval", "test", "testing")
_LINKED = ("parent", "parent_id", "conversation_id", "dialog_id", "dialogue_id", "thread_id", "session_id")


class JsonRows(FileKind):
    """Lines of objects; or a list, which is read as a stream; or {"data": [...]}."""

    name, label, order = "json", "JSON", 10
    help = "One JSON object a line, or a list of objects."
    suffixes = (".jsonl", ".json", ".ndjson")

    def read(self, reader: RowReader) -> NumberedRows:
        with reader.opened() as file:
            by_line = _is_lines(file, may_be_one=reader.suffix != ".json")
            yield from _lines(reader, file) if by_line else _listed(reader, file)


KIND = JsonRows()


def _lines(reader: RowReader, file: BinaryIO) -> NumberedRows:
    for number, line in enumerate(reader.lines(file), start=1):
        if isinstance(line, BadRow):
            yield number, line
        elif line.strip():
            yield number, _parsed(line, f"Line {number}")


def _listed(reader: RowReader, file: BinaryIO) -> NumberedRows:
    number = 0
    try:
        for number, value in enumerate(_together(reader, _values(reader, file)), start=1):
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
            f'{reader.name} holds no list of rows; expected [{{…}}, …] or {{"data": [{{…}}, …]}}, as pandas '
            "writes with to_json(orient='records')."
        )


def _values(reader: RowReader, file: BinaryIO) -> Iterator[Any]:
    """The items of the file's list, or of the list of rows in the file's object."""
    if _first_byte(file) != b"{":
        yield from items(file, MOST_LINE)
        return
    at = file.tell()
    key = _rows_key(reader, file)
    file.seek(at)
    if key is None:
        yield DECODER.decode(file.read().decode("utf-8", "surrogateescape"))
    elif key:
        lists = Lists()
        yield from (item for of, item in members(file, MOST_LINE, lists) if of == key)
        reader.unread = tuple(f"{reader.name}: {name}" for name in lists.of_objects if name != key)


def _rows_key(reader: RowReader, file: BinaryIO) -> str | None:
    """The key of the list of rows; None if the object is itself a row; "" if it holds no list of objects.

    Raises InvalidData if that is not clear, CutShort.
    """
    lists = Lists()
    for key, item in members(file, MOST_LINE, lists):
        if key == _ROWS[0] and isinstance(item, dict) and not is_turn(item):
            return key
    turns = [key for key, item in lists.first.items() if is_turn(item)]
    if turns and turns == lists.of_objects and reader.size <= MOST_LINE:
        return None
    found = [key for key in lists.of_objects if key.lower() not in _HELD_BACK]
    named = [key for name in _ROWS for key in found if key.lower() == name]
    if not found and _is_columns(lists.others):
        raise InvalidData(
            f"{reader.name} holds columns, not rows; write it as a list of rows (in pandas "
            "to_json(orient='records', lines=True))."
        )
    if len(found) > 1 and not named:
        raise InvalidData(
            f"{reader.name} holds several lists, {', '.join(map(repr, found[:12]))}; keep the one with the "
            'rows, as {"data": [{…}, …]}.'
        )
    return next(iter((*named, *found)), "")


def _is_columns(values: dict[str, Any]) -> bool:
    """Whether these are columns, each an object of the same row numbers."""
    columns = list(values.values())
    return (
        bool(columns)
        and all(isinstance(one, dict) and one for one in columns)
        and all(key.isdecimal() for key in columns[0])
        and all(one.keys() == columns[0].keys() for one in columns)
    )


def _together(reader: RowReader, values: Iterator[Any]) -> Iterator[Any]:
    """The values; or one list of them, where they are the turns of a single conversation."""
    first = next(values, None)
    if first is None:
        return
    if reader.size > MOST_LINE or not _is_lone_turn(first):
        yield from itertools.chain((first,), values)
        return
    held = [first]
    for value in values:
        held.append(value)
        if not _is_lone_turn(value):
            yield from itertools.chain(held, values)
            return
    yield held


def _is_lone_turn(value: Any) -> bool:
    """Whether it is a turn that says nothing of where it belongs."""
    return is_turn(value) and not value.keys() & _LINKED


def _parsed(line: bytes, where: str) -> Row | BadRow:
    try:
        # Without its end, beyond which a row that is cut short would be said to be wrong.
        return _object(DECODER.decode(line.decode("utf-8").rstrip()), where)
    except UnicodeDecodeError as error:
        return BadRow("encoding", f"{where} is not UTF-8: byte {line[error.start]:#04x}.", shown(line))
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at column {error.colno}"
        if b"\r" in line.strip():
            reason = "lines of the file end in CR alone; save it with line ends of Unix or Windows"
        if line.lstrip()[:2] in (b"{'", b"['"):
            reason = "Python's quotes; write it with json.dumps"
        return BadRow("unreadable", f"{where} is not valid JSON ({reason}).", shown(line))
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
    """A row; a list of turns is one too. What is neither is bad."""
    if isinstance(value, dict):
        return value
    if isinstance(value, TooLong):
        return too_long(where, value.size)
    if isinstance(value, Exception):
        return BadRow("unreadable", _cannot_be_read(where, value))
    if are_turns(value):
        return {"messages": value}
    found = "null" if value is None else kind_of(value)
    return BadRow(
        "unreadable", f"{where} is {found}; expected an object with named columns, or a list of turns."
    )


def _first_byte(file: BinaryIO) -> bytes:
    """The first byte that is no white space; the file stays where it was."""
    at = file.tell()
    start = file.read(1 << 12).lstrip()[:1]
    file.seek(at)
    return start


def _is_lines(file: BinaryIO, *, may_be_one: bool) -> bool:
    """Whether the file is lines of rows: its first line is a whole object, or a list of turns, and more
    follows.

    may_be_one: whether a lone object, or what is no JSON, is a line too.
    """
    start = _first_byte(file)
    if start not in (b"[", b"{"):
        return may_be_one
    at = file.tell()
    line, more = _line(file), _line(file)
    file.seek(at)
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return may_be_one and start == b"{" and line.strip() != b"{"
    if not more:
        return may_be_one and isinstance(found, dict) and not _holds_rows(found)
    return isinstance(found, dict) or are_turns(found)


def _holds_rows(value: dict[str, Any]) -> bool:
    """Whether an object is a file of rows rather than one of them."""
    lists = [value[key] for key in value if key.lower() in _ROWS and isinstance(value[key], list)]
    return any(one and isinstance(one[0], dict) and not is_turn(one[0]) for one in lists)


def _line(file: BinaryIO) -> bytes:
    """The next line that is not blank."""
    return next((line for line in iter(lambda: file.readline(MOST_LINE), b"") if line.strip()), b"")
