"""A data set on disk: one Arrow file of rows in a single shape, memory-mapped for reading. Needs no torch."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from core.data.formats import Example, Format, detect
from core.data.read import read_rows
from core.errors import InvalidData

_BATCH_ROWS = 1000
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("text", pa.string()),
    ]
)


@dataclass(frozen=True)
class Imported:
    """What an import found."""

    format: str
    reason: str
    rows: int
    preview: list[dict[str, Any]]
    """The first rows as stored."""


def import_file(source: Path, target: Path) -> Imported:
    """Read `source`, detect its format and write its rows to the Arrow file `target`.

    Raises InvalidData with the row's number and the reason at the first row that cannot be used.
    """
    rows = read_rows(source)
    first = next(rows, None)
    if first is None:
        raise InvalidData(f"{source.name} holds no rows.")
    try:
        form = detect(list(first[1]), first[1])
    except InvalidData as error:
        raise InvalidData(f"{source.name}: {error}") from None
    count = 0
    preview: list[dict[str, Any]] = []
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        converted = _convert(source, form, itertools.chain([first], rows))
        while batch := list(itertools.islice(converted, _BATCH_ROWS)):
            records = [{"row": one.row, "messages": list(one.messages), "text": one.text} for one in batch]
            writer.write_batch(pa.RecordBatch.from_pylist(records, schema=_SCHEMA))
            preview.extend(records[: max(0, 5 - len(preview))])
            count += len(batch)
    return Imported(form.name, form.reason, count, preview)


def _convert(source: Path, form: Format, rows: Iterator[tuple[int, dict[str, Any]]]) -> Iterator[Example]:
    for number, row in rows:
        try:
            example = form.convert(number, row)
            _require_unicode(example)
            yield example
        except InvalidData as error:
            raise InvalidData(f"{source.name}: {error}") from None


def _require_unicode(example: Example) -> None:
    """Raise InvalidData for text that is no Unicode: half a surrogate pair, as broken JSON escapes give."""
    for text in (example.text, *(message["content"] for message in example.messages)):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidData(f"Row {example.row}: the text holds half a character (an unpaired \\ud… escape).") from None


class DatasetFile:
    """Random access to the rows of a data set; only the rows asked for are read."""

    def __init__(self, path: Path) -> None:
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except (pa.ArrowException, OSError) as error:
            raise InvalidData(f"The stored data set {path.name} cannot be read: {str(error)[:200]}") from None
        sizes = (self._reader.get_batch(i).num_rows for i in range(self._reader.num_record_batches))
        self._ends = list(itertools.accumulate(sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Example:
        batch = bisect_right(self._ends, index)
        before = self._ends[batch - 1] if batch else 0
        record = self._reader.get_batch(batch).slice(index - before, 1).to_pylist()[0]
        return Example(record["row"], tuple(record["messages"]), record["text"])

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))
