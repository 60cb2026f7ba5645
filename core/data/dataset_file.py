"""The rows of a data set on disk: one Arrow file in a single shape, memory-mapped for reading.

Needs no torch.
"""

from __future__ import annotations

import itertools
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from core.data.findings import Finding
from core.data.formats import Example, Message
from core.errors import InvalidData

ROWS_FILE, FINDINGS_FILE, SUMMARY_FILE = "rows.arrow", "findings.arrow", "summary.json"
_BATCH_ROWS = 1000
_TURN = pa.struct(
    [("role", pa.string()), ("content", pa.string()), ("train", pa.bool_()), ("more", pa.string())]
)
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("file", pa.int16()),
        ("messages", pa.list_(_TURN)),
        ("text", pa.string()),
        ("label", pa.string()),
        ("fault", pa.string()),
        ("raw", pa.string()),
        ("hash", pa.uint64()),
        ("prompt", pa.uint64()),
        ("beside", pa.string()),
    ]
)
_PLAIN = frozenset(("role", "content"))
_FINDINGS = pa.schema([("index", pa.int32()), ("code", pa.string()), ("detail", pa.string())])


@dataclass(frozen=True)
class StoredRow:
    """A row as it is kept: what became of it, or the code of the fault that kept anything from becoming of
    it.
    """

    number: int
    file: int
    example: Example
    fault: str = ""
    raw: str = ""
    """What stood in the file, where the row has a fault."""
    hash: int = 0
    """Of what the row says; 0 for a row with a fault."""
    prompt: int = 0
    """Of what stands before its last answer."""


class RowsWriter:
    """Writes rows into an Arrow file, batch by batch."""

    def __init__(self, path: Path) -> None:
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, _SCHEMA)
        self._waiting: list[StoredRow] = []

    def write(self, row: StoredRow) -> None:
        """Add one row."""
        self._waiting.append(row)
        if len(self._waiting) == _BATCH_ROWS:
            self._flush()

    def close(self) -> None:
        """Write what waits, and the end of the file."""
        self._flush()
        self._writer.close()
        self._sink.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_batch(_batch(self._waiting))
            self._waiting = []


def _batch(rows: list[StoredRow]) -> pa.RecordBatch:
    """Column by column: building nested values from Python dictionaries takes several times as long."""
    examples = [row.example for row in rows]
    turns = [message for one in examples for message in one.messages]
    trained = [at not in one.untrained for one in examples for at in range(len(one.messages))]
    offsets = list(itertools.accumulate((len(one.messages) for one in examples), initial=0))
    flat = pa.StructArray.from_arrays(
        [
            pa.array([turn["role"] for turn in turns], pa.string()),
            pa.array([turn["content"] for turn in turns], pa.string()),
            pa.array(trained, pa.bool_()),
            pa.array([_more(turn) for turn in turns], pa.string()),
        ],
        fields=list(_TURN),
    )
    columns = [
        pa.array([row.number for row in rows], pa.int64()),
        pa.array([row.file for row in rows], pa.int16()),
        pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), flat),
        pa.array([one.text for one in examples], pa.string()),
        pa.array([one.label for one in examples], pa.string()),
        pa.array([row.fault for row in rows], pa.string()),
        pa.array([row.raw for row in rows], pa.string()),
        pa.array([row.hash for row in rows], pa.uint64()),
        pa.array([row.prompt for row in rows], pa.uint64()),
        pa.array([_beside(one) for one in examples], pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)


def _more(turn: Message) -> str | None:
    """What a turn has beside its text, as JSON."""
    if len(turn) == len(_PLAIN):
        return None
    return json.dumps({key: value for key, value in turn.items() if key not in _PLAIN}, ensure_ascii=False)


def _beside(example: Example) -> str | None:
    """What a row has beside its turns, as JSON."""
    if not example.tools and not example.template_kwargs:
        return None
    about = {"tools": example.tools, "template_kwargs": dict(example.template_kwargs)}
    return json.dumps(about, ensure_ascii=False)


class DatasetFile:
    """Random access to the rows of a data set; only the rows asked for are read. Iterating gives Examples."""

    def __init__(self, path: Path) -> None:
        """`path` is the folder of a data set, or the file of an earlier version of the workbench, which had
        no faulty rows.

        Raises InvalidData if it cannot be read.
        """
        self._path = path / ROWS_FILE if path.is_dir() else path
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(self._path)))
        except (pa.ArrowException, OSError) as error:
            raise InvalidData(f"The stored data set {path.name} cannot be read: {str(error)[:200]}") from None
        sizes = (self._reader.get_batch(i).num_rows for i in range(self._reader.num_record_batches))
        self._ends = list(itertools.accumulate(sizes))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Example:
        return self.stored(index).example

    def __iter__(self) -> Iterator[Example]:
        return (row.example for row in self.all_stored())

    def stored(self, index: int) -> StoredRow:
        """One row with everything kept about it. Raises InvalidData if there is no such row."""
        if not 0 <= index < len(self):
            raise InvalidData(f"There is no row {index + 1}; the data set has {len(self):,}.")
        batch = bisect_right(self._ends, index)
        before = self._ends[batch - 1] if batch else 0
        return _stored(self._reader.get_batch(batch).slice(index - before, 1).to_pylist()[0])

    def all_stored(self) -> Iterator[StoredRow]:
        """All rows in order, a batch at a time; read rather than mapped, so that what has passed takes no
        memory.
        """
        with pa.OSFile(str(self._path)) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                yield from map(_stored, reader.get_batch(number).to_pylist())

    def holding(self, words: Sequence[str]) -> NDArray[np.bool_]:
        """Which rows [rows] hold every one of these words in what they say, whatever their case."""
        batches = (self._reader.get_batch(number) for number in range(self._reader.num_record_batches))
        found = [_holding(batch, words) for batch in batches]
        return np.concatenate(found) if found else np.zeros(0, bool)

    def column(self, name: str) -> list[Any]:
        """One of row, file, label, fault, hash and prompt for all rows; what an earlier version did not keep
        is None.
        """
        if name not in self._reader.schema.names:
            return [None] * len(self)
        batches = (self._reader.get_batch(number) for number in range(self._reader.num_record_batches))
        return [value for batch in batches for value in batch.column(name).to_pylist()]


def _holding(batch: pa.RecordBatch, words: Sequence[str]) -> NDArray[np.bool_]:
    messages = batch.column("messages")
    said, of_row = messages.flatten().field("content"), messages.value_parent_indices().to_numpy()
    others = [batch.column(name) for name in ("text", "raw", "beside") if name in batch.schema.names]
    more = messages.flatten().field("more") if messages.type.value_type.get_field_index("more") >= 0 else None
    found = np.ones(batch.num_rows, bool)
    for word in words:
        here = np.zeros(batch.num_rows, bool)
        here[of_row[_with(said, word)]] = True
        if more is not None:
            here[of_row[_with(more, word)]] = True
        for column in others:
            here |= _with(column, word)
        found &= here
    return found


def _with(texts: pa.Array, word: str) -> NDArray[np.bool_]:
    held = pc.match_substring(texts, word, ignore_case=True)
    return np.asarray(held.fill_null(False).to_numpy(zero_copy_only=False), bool)


def _turn(record: dict[str, Any]) -> Message:
    plain = {"role": record["role"], "content": record["content"]}
    return plain | json.loads(record["more"]) if record.get("more") else plain


def _stored(record: dict[str, Any]) -> StoredRow:
    messages = tuple(map(_turn, record["messages"]))
    silent = frozenset(at for at, turn in enumerate(record["messages"]) if turn.get("train") is False)
    beside = json.loads(record["beside"]) if record.get("beside") else {}
    example = Example(
        record["row"],
        messages,
        record["text"] or "",
        silent,
        record.get("label") or "",
        tuple(beside.get("tools", ())),
        beside.get("template_kwargs", {}),
    )
    return StoredRow(
        record["row"],
        record.get("file") or 0,
        example,
        record.get("fault") or "",
        record.get("raw") or "",
        record.get("hash") or 0,
        record.get("prompt") or 0,
    )


@dataclass
class Findings:
    """What was found in the rows, in the order of the rows."""

    table: pa.Table = field(
        default_factory=lambda: pa.table({name: [] for name in _FINDINGS.names}, schema=_FINDINGS)
    )

    @classmethod
    def of(cls, found: Sequence[Finding]) -> Findings:
        """From findings in any order."""
        columns = [[one.index for one in found], [one.code for one in found], [one.detail for one in found]]
        arrays = [pa.array(column, one.type) for column, one in zip(columns, _FINDINGS, strict=True)]
        return cls(pa.Table.from_arrays(arrays, schema=_FINDINGS).sort_by("index"))

    @classmethod
    def read(cls, folder: Path) -> Findings:
        """Those stored with a data set; none where an earlier version of the workbench stored it."""
        path = folder / FINDINGS_FILE
        if not path.is_file():
            return cls()
        with pa.memory_map(str(path)) as source:
            return cls(pa.ipc.open_file(source).read_all())

    def write(self, folder: Path) -> None:
        """Store them with the rows."""
        with pa.OSFile(str(folder / FINDINGS_FILE), "wb") as sink, pa.ipc.new_file(sink, _FINDINGS) as writer:
            writer.write_table(self.table)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def without(self, code: str) -> Findings:
        """All but those of one kind."""
        return Findings(self.table.filter(pc.not_equal(self.table["code"], code)))

    def counts(self, among: NDArray[np.bool_] | None = None) -> dict[str, int]:
        """Findings by code, of all rows or of those that a mask [rows] names."""
        table = self.table
        if among is not None:
            at = table["index"].to_numpy()
            table = table.filter(pa.array((at >= 0) & among[np.clip(at, 0, None)]))
        counted = table.group_by("code").aggregate([("index", "count")]).to_pylist()
        return {one["code"]: one["index_count"] for one in counted}

    def indices(self, *codes: str) -> list[int]:
        """The rows with findings of these codes, of any without."""
        table = self.table.filter(pc.is_in(self.table["code"], pa.array(codes))) if codes else self.table
        return sorted({index for index in table["index"].to_pylist() if index >= 0})

    def about(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Finding]:
        """Findings about these rows."""
        mask = pc.is_in(self.table["index"], pa.array(np.asarray(rows, np.int32)))
        return [Finding(**record) for record in self.table.filter(mask).to_pylist()]

    def some(self, codes: Sequence[str] = (), start: int = 0, count: int | None = None) -> list[Finding]:
        """Findings of these codes, of any without, a part of them."""
        table = self.table.filter(pc.is_in(self.table["code"], pa.array(codes))) if codes else self.table
        return [Finding(**record) for record in table.slice(start, count).to_pylist()]
