"""Files of rows, read one row at a time with the number a person would find it by. Needs no torch.

A row is a mapping of column names to values. Its number is the line of a JSONL file, or the position from 1 elsewhere.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
from pyarrow import ArrowException

from core.errors import InvalidData

Row = dict[str, Any]
NumberedRows = Iterator[tuple[int, Row]]
_MAX_FIELD = 32 * 1024 * 1024


def read_rows(path: Path) -> NumberedRows:
    """Yield (number, row) for each row of `path`. Raises InvalidData with the row's number and the reason."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InvalidData(f"{path.name}: files ending in {path.suffix or 'nothing'} cannot be read; use {', '.join(_READERS)}.")
    if path.stat().st_size == 0:
        raise InvalidData(f"{path.name} is empty.")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise InvalidData(f"{path.name} is not UTF-8 text ({_bad_line(path)}); save it as UTF-8.") from error


def _bad_line(path: Path) -> str:
    """Where the first bytes are that are not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return f"byte {line[error.start]:#04x} in line {number}"
    return "cut off at its end"


def _read_jsonl(path: Path) -> NumberedRows:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _object(path, f"Line {number}", _parse(path, f"line {number}", line))


def _read_json(path: Path) -> NumberedRows:
    content = _parse(path, "the file", path.read_text(encoding="utf-8-sig"))
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list):
        raise InvalidData(f"{path.name} holds {kind_of(content)}; expected a list of rows [{{…}}, …].")
    for number, row in enumerate(content, start=1):
        yield number, _object(path, f"Row {number}", row)


def _parse(path: Path, where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = where if where.startswith("line") else f"line {error.lineno}"
        raise InvalidData(f"{path.name}: {place} is not valid JSON ({error.msg} at column {error.colno}).") from None
    except RecursionError:
        raise InvalidData(f"{path.name}: {where} is nested too deeply.") from None
    except ValueError as error:  # a number with thousands of digits
        raise InvalidData(f"{path.name}: {where} cannot be read ({str(error)[:80]}).") from None


def _object(path: Path, where: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise InvalidData(f"{path.name}: {where} is {kind_of(value)}; expected an object with named columns.")
    return value


def _read_csv(path: Path) -> NumberedRows:
    csv.field_size_limit(_MAX_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _csv_delimiter(file.readline())
        file.seek(0)
        reader = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            _refuse_twin_columns(path, list(reader.fieldnames or []))
            for number, row in enumerate(reader, start=1):
                if None in row or None in row.values():
                    raise InvalidData(
                        f"{path.name}: row {number} (line {reader.line_num}) has a different number of columns than the "
                        f"header ({len(reader.fieldnames or [])}); put text with commas in quotes."
                    )
                yield number, row
        except csv.Error as error:
            raise InvalidData(f"{path.name}: line {reader.line_num} is not valid CSV ({error}).") from None


def _refuse_twin_columns(path: Path, names: list[str]) -> None:
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise InvalidData(f"{path.name} has several columns called {twins[0][:40]!r}; give each a name of its own.")


def _csv_delimiter(header: str) -> str:
    """The separator that splits the header into most columns; a comma if none does."""
    return max((",", ";", "\t", "|"), key=header.count)


def _read_parquet(path: Path) -> NumberedRows:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (ArrowException, OSError) as error:
        raise InvalidData(f"{path.name} is not a readable Parquet file: {str(error)[:200]}") from None


def _read_text(path: Path) -> NumberedRows:
    yield 1, {"text": path.read_text(encoding="utf-8-sig")}


def kind_of(value: Any) -> str:
    """What a value is, in words."""
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "missing" if value is None else names.get(type(value), type(value).__name__)


_READERS: dict[str, Callable[[Path], NumberedRows]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
    ".md": _read_text,
}
SUFFIXES = tuple(_READERS)
