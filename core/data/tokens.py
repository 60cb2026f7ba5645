"""A data set as token ids for one base: rendered once, kept in a memory-mapped file, found again by content.

The file holds whole rows. Cutting them to a length is done when they are read, so one file serves every
max_length, the report on a data set and the training.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from core.data.dataset_file import StoredRow
from core.data.formats import Example
from core.data.packing import OVER_LENGTH
from core.data.rendering import IGNORE, Rendered, Renderer
from core.data.sequences import ONE_EACH, Sequences
from core.errors import InvalidConfig, InvalidData
from core.events import Progress
from core.reporting import Report, silent

_VERSION = 5  # of the rendering; a change makes older files be written anew
_BATCH_ROWS = 1000
_KEPT_BYTES = 10 << 30  # of cached files; the longest unused go first
_SCHEMA = pa.schema(
    [
        ("ids", pa.list_(pa.int32())),
        ("spans", pa.list_(pa.int32())),
        ("text", pa.bool_()),
        ("end", pa.int32()),
        ("problem", pa.string()),
        ("row", pa.int32()),
        ("shared", pa.int32()),
        ("notes", pa.string()),
    ]
)
_NO_END = -1
Numbers = NDArray[np.int64]
Mask = NDArray[np.bool_]


class TokenFile:
    """All rows of a data set as ids, whole: a sequence each, or several one behind another. One with a fault
    has no ids.
    """

    def __init__(self, source: Path | pa.Buffer) -> None:
        """A file on disk, or its bytes in memory.

        Raises InvalidData if the file is not one this version wrote.
        """
        self.source = source
        reader = _reader(source)
        self._ids: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
        self._firsts: list[int] = []
        lengths, texts, ends, span_rows, spans, rows, shared = [], [], [], [], [], [], []
        self.problems: dict[int, str] = {}
        """Why rows could not be rendered, by sequence."""
        self.notes: dict[int, list[tuple[str, str]]] = {}
        """What was done to rows when they were rendered, (code, sentence), by row of the data set."""
        count = 0
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            ids, ranges = batch.column(0), batch.column(1)
            starts, flat = ids.offsets.to_numpy(), ids.values.to_numpy()
            self._ids.append((starts, flat))
            self._firsts.append(count)
            lengths.append(np.diff(starts))
            texts.append(batch.column(2).to_numpy(zero_copy_only=False))
            span_rows.append(
                np.repeat(np.arange(count, count + batch.num_rows), np.diff(ranges.offsets.to_numpy()) // 2)
            )
            spans.append(ranges.values.to_numpy().reshape(-1, 2))
            ends.append(batch.column(3).to_numpy())
            problems = batch.column(4)
            if problems.null_count < len(problems):
                self.problems |= {
                    count + at: text for at, text in enumerate(problems.to_pylist()) if text is not None
                }
            rows.append(batch.column(5).to_numpy())
            shared.append(batch.column(6).to_numpy())
            self._read_notes(batch)
            count += batch.num_rows
        self.lengths: Numbers = _joined(lengths)
        """Tokens of each sequence, [sequences]."""
        self.rows: Numbers = _joined(rows)
        """The row of the data set that each sequence is of, ascending, [sequences]."""
        self.shared: Numbers = _joined(shared)
        """Tokens that each begins with as the one before it, of the same row, does, [sequences]."""
        self.texts: Mask = np.concatenate(texts) if texts else np.zeros(0, bool)
        """Whether a sequence is plain text, [sequences]."""
        self.ends: Numbers = _joined(ends)
        """The last token of each sequence that carries loss, -1 where none does, [sequences]."""
        self._span_rows: Numbers = _joined(span_rows)
        self._spans: Numbers = np.concatenate(spans).astype(np.int64) if spans else np.zeros((0, 2), np.int64)

    def _read_notes(self, batch: pa.RecordBatch) -> None:
        notes = batch.column(7)
        if notes.null_count == len(notes):
            return
        for row, text in zip(batch.column(5).to_pylist(), notes.to_pylist(), strict=True):
            if text is not None:
                self.notes[row] = [(code, said) for code, said in json.loads(text)]

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, row: int) -> NDArray[np.int32]:
        """The ids of one sequence, a view of the file."""
        batch = int(np.searchsorted(self._firsts, row, side="right")) - 1
        starts, flat = self._ids[batch]
        at = row - self._firsts[batch]
        return flat[starts[at] : starts[at + 1]]

    def spans(self, row: int) -> Numbers:
        """Ranges [start, stop) of a sequence's tokens that carry loss, [spans, 2]."""
        first, last = np.searchsorted(self._span_rows, [row, row + 1])
        return self._spans[first:last]

    def supervised(self, stop: int = 1 << 60) -> Numbers:
        """Tokens that carry loss among the first `stop` of each sequence, [sequences].

        The first never does: nothing predicts it.
        """
        found = np.clip(np.minimum(self._spans[:, 1], stop) - np.maximum(self._spans[:, 0], 1), 0, None)
        return np.bincount(self._span_rows, weights=found, minlength=len(self)).astype(np.int64)


def _reader(source: Path | pa.Buffer) -> pa.ipc.RecordBatchFileReader:
    if isinstance(source, pa.Buffer):
        return pa.ipc.open_file(source)
    try:
        return pa.ipc.open_file(pa.memory_map(str(source)))
    except (pa.ArrowException, OSError) as error:
        raise InvalidData(f"The tokenised rows in {source.name} cannot be read: {str(error)[:200]}") from None


def _joined(parts: list[NDArray[np.int64]]) -> Numbers:
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


@dataclass(frozen=True)
class _Parts:
    """Rows as they are cut: row i stands in parts[...], each [parts]."""

    rows: Numbers
    starts: Numbers
    stops: Numbers
    supervised: Numbers

    def complete(self, each: int) -> _Parts:
        """Without the rows of the file whose neighbours of the same row of the data set are missing."""
        there = np.bincount(self.rows // each)[self.rows // each] == each if len(self.rows) else slice(0)
        return _Parts(self.rows[there], self.starts[there], self.stops[there], self.supervised[there])


@dataclass(frozen=True)
class RowsAsked:
    """Which rows of a file were asked for, and cut in which way: with the file and the length all that says
    which there are. As TokenRows takes them.
    """

    over_length: str
    keep: Mask | None
    validation: Mask | None
    each: int = 1


class TokenRows:
    """The sequences a run is trained and judged on, cut to max_length; ids and labels are read when asked
    for.

    truncated counts the rows with one that was longer than max_length; skipped those of which nothing is
    left: their answers lie wholly beyond the cut, or over_length says drop.
    """

    def __init__(
        self,
        file: TokenFile,
        max_length: int,
        *,
        keep: Mask | None = None,
        validation: Mask | None = None,
        over_length: str = "truncate",
        each: int = 1,
    ) -> None:
        """keep and validation have one entry a row of the data set; by default all are kept and trained on.
        All sequences of a row are on one side. each: how many every row has that are kept together or not at
        all; 1 where a row may have any number that stand by themselves.

        over_length: truncate cuts long conversations off, split makes several rows of them, drop leaves them
        out. Long plain text is always split. Raises InvalidData for a row that could not be rendered, or if
        nothing is left.
        """
        if over_length not in OVER_LENGTH:
            raise InvalidConfig(f"over_length must be one of {', '.join(OVER_LENGTH)}, not {over_length!r}.")
        if each > 1 and over_length == "split":
            raise InvalidConfig(
                f"over_length = split cannot be used where a row becomes {each} sequences, since parts of "
                "them do not belong together; choose truncate or drop."
            )
        self.file, self.max_length = file, max_length
        self.asked = RowsAsked(over_length, keep, validation, each)
        wanted = np.ones(len(file), bool) if keep is None else keep[file.rows]
        failed = [row for row in file.problems if wanted[row]]
        if failed:
            more = f" So do {len(failed) - 1:,} more rows." if len(failed) > 1 else ""
            raise InvalidData(
                f"{file.problems[failed[0]]}{more} Check the data set with this base and leave such rows out."
            )
        long = wanted & (file.lengths > max_length)
        parts = _cut(file, wanted & (file.lengths > 0), long, max_length, over_length, may_split=each == 1)
        if each > 1:
            parts = parts.complete(each)
        if not len(parts.rows):
            raise InvalidData(
                f"No row has a token to train on within max_length = {max_length}; raise max_length."
            )
        self.truncated = len(np.unique(file.rows[long]))
        self.skipped = len(np.unique(file.rows[wanted & (file.lengths > 0)])) - len(
            np.unique(file.rows[parts.rows])
        )
        self._parts = parts
        self.lengths: Numbers = parts.stops - parts.starts
        self.supervised: Numbers = parts.supervised
        self.validation: Mask = (
            np.zeros(len(self), bool) if validation is None else validation[file.rows[parts.rows]]
        )
        """Whether each is kept for validation, [sequences]."""
        self.sources: Numbers = file.rows[parts.rows]
        """The row of the data set that each comes from, [sequences]."""

    def __len__(self) -> int:
        return len(self._parts.rows)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """ids and labels of one row, each [length]."""
        row, start, stop = (
            int(column[index]) for column in (self._parts.rows, self._parts.starts, self._parts.stops)
        )
        ids = self.file.ids(row)[start:stop]
        labels = np.full(len(ids), IGNORE, np.int32)
        for first, last in self.file.spans(row) - start:
            labels[max(0, first) : max(0, last)] = ids[max(0, first) : max(0, last)]
        return ids, labels


def _cut(
    file: TokenFile, wanted: Mask, long: Mask, max_length: int, over_length: str, *, may_split: bool
) -> _Parts:
    """Each row's parts, in order of the rows; parts without a trained token are left out."""
    split = long & (file.texts | (over_length == "split")) & may_split
    single = np.flatnonzero(wanted & ~split & ~(long & (over_length == "drop")))
    stops = np.minimum(file.lengths, max_length)
    rows, starts, ends, supervised = (
        [single],
        [np.zeros_like(single)],
        [stops[single]],
        [file.supervised(max_length)[single]],
    )
    for row in np.flatnonzero(wanted & split):
        begins = np.arange(0, file.lengths[row], max_length)
        finishes = np.minimum(begins + max_length, file.lengths[row])
        spans = file.spans(int(row))
        inside = np.minimum(spans[:, 1], finishes[:, None]) - np.maximum(
            spans[:, 0], begins[:, None] + 1
        )  # [parts, spans]
        rows.append(np.full(len(begins), row))
        starts.append(begins)
        ends.append(finishes)
        supervised.append(np.clip(inside, 0, None).sum(1))
    columns = [np.concatenate(column) for column in (rows, starts, ends, supervised)]
    kept = np.flatnonzero(columns[3] > 0)
    order = kept[np.lexsort((columns[1][kept], columns[0][kept]))]
    return _Parts(*(column[order].astype(np.int64) for column in columns))


def tokenised(
    rows: Iterable[StoredRow],
    digest: str,
    renderer: Renderer,
    cache: Path,
    *,
    sequences: Sequences = ONE_EACH,
    total: int = 0,
    report: Report = silent,
) -> TokenFile:
    """The rows of a data set with this content `digest` for this tokenizer, from the folder `cache` or
    rendered into it.

    Row i of the data set is as many sequences of the file as `sequences` makes of it, see TokenFile.rows.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = token_path(digest, renderer, cache, sequences)
    if not path.exists():
        staged = path.with_suffix(f".{os.getpid()}.new")
        try:
            with pa.OSFile(str(staged), "wb") as sink:
                _write(sink, _rendered(rows, renderer, sequences), total, report)
            os.replace(staged, path)
        finally:
            staged.unlink(missing_ok=True)
    found = TokenFile(path)
    path.touch()
    _forget_oldest(cache, keep=path)
    return found


def tokenised_in_memory(rows: Iterable[StoredRow], renderer: Renderer) -> TokenFile:
    """As tokenised() for few rows, which are not worth a file: row i of them is row i of the result."""
    sink = pa.BufferOutputStream()
    _write(sink, _rendered(rows, renderer, ONE_EACH), 0, silent)
    return TokenFile(sink.getvalue())


def token_path(digest: str, renderer: Renderer, cache: Path, sequences: Sequences = ONE_EACH) -> Path:
    """Where the rows' ids are kept: named by the data, the tokenizer with its chat template, the rendering,
    and how rows become sequences.
    """
    tokenizer: PreTrainedTokenizerBase = renderer.tokenizer
    about = [
        _VERSION,
        digest,
        renderer.special_tokens,
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
        renderer.chat.to_dict(),
        *sequences.key,
    ]
    return cache / f"{hashlib.sha256(json.dumps(about).encode()).hexdigest()}.arrow"


_Found = tuple[Rendered | InvalidData | None, bool, int, int]
"""A sequence of the file: what was rendered, the reason why it could not be, or None for a row with a fault;
whether it is plain text; the row of the data set; and how many tokens it begins with as the one before it
does.
"""


def _write(sink: pa.NativeFile, rows: Iterable[_Found], total: int, report: Report) -> None:
    with pa.ipc.new_file(sink, _SCHEMA) as writer:
        waiting: list[_Found] = []
        done = 0
        for found in rows:
            waiting.append(found)
            if len(waiting) == _BATCH_ROWS:
                writer.write_batch(_batch(waiting))
                done += len(waiting)
                waiting = []
                report(Progress(f"Tokenising rows ({done:,})", min(1.0, done / total) if total else None))
        if waiting:
            writer.write_batch(_batch(waiting))


def _rendered(rows: Iterable[StoredRow], renderer: Renderer, sequences: Sequences) -> Iterator[_Found]:
    """The sequences of each row, one after another."""
    for row, (found, text) in enumerate(_by_row(rows, renderer, sequences)):
        if not isinstance(found, tuple):
            yield from ((found, text, row, 0) for _ in range(sequences.count))
            continue
        for before, part in zip((None, *found), found, strict=False):
            yield part, text, row, _shared(before, part)


def _shared(before: Rendered | None, after: Rendered) -> int:
    """How many ids two sequences begin with in common."""
    pairs = zip(before.ids if before else (), after.ids, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _by_row(
    rows: Iterable[StoredRow], renderer: Renderer, sequences: Sequences
) -> Iterator[tuple[tuple[Rendered, ...] | InvalidData | None, bool]]:
    """Each row's sequences, and whether it is plain text; None for one with a fault."""
    waiting: deque[tuple[bool, bool]] = (
        deque()
    )  # (fault, plain text) of the rows handed on that have not come back

    def examples() -> Iterator[Example]:
        for row in rows:
            waiting.append((bool(row.fault), not row.example.messages))
            if not row.fault:
                yield row.example

    for rendered in sequences.render(renderer, examples()):
        while waiting[0][0]:
            waiting.popleft()
            yield None, False
        yield rendered, waiting.popleft()[1]
    yield from ((None, False) for _ in waiting)


def _batch(rows: list[_Found]) -> pa.RecordBatch:
    good = [row if isinstance(row, Rendered) else Rendered([], []) for row, *_ in rows]
    columns = [
        [row.ids for row in good],
        [[bound for span in row.spans for bound in span] for row in good],
        [text for _, text, _, _ in rows],
        [row.ids[row.spans[-1][1] - 1] if row.spans else _NO_END for row in good],
        [str(row) if isinstance(row, InvalidData) else None for row, *_ in rows],
        [row for _, _, row, _ in rows],
        [shared for _, _, _, shared in rows],
        [json.dumps(one.notes, ensure_ascii=False) if one.notes else None for one in good],
    ]
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA
    )


def _forget_oldest(cache: Path, keep: Path) -> None:
    """Bring the cache back under its size; what goes can be rendered again."""
    files = sorted(
        (path for path in cache.glob("*.arrow") if path != keep), key=lambda path: path.stat().st_mtime
    )
    total = sum(path.stat().st_size for path in files) + keep.stat().st_size
    for path in files:
        if total <= _KEPT_BYTES:
            return
        total -= path.stat().st_size
        path.unlink()
