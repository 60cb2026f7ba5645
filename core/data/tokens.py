"""A data set as token ids for one base: rendered once, kept in a memory-mapped file, found again by content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from core.data.formats import Example
from core.data.render import IGNORE, Rendered, render
from core.errors import InvalidData, InvalidModel

_VERSION = 1  # of the rendering; a change makes older files be written anew
_BATCH_ROWS = 1000
_KEPT_BYTES = 10 << 30  # of cached files; the longest unused go first
_SCHEMA = pa.schema([("ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32())), ("truncated", pa.bool_())])


class TokenRows:
    """Rows of ids and labels, read from the file when asked for.

    truncated counts the rows that were longer than max_length and were cut; skipped the rows whose answers lie wholly
    beyond the cut, which are left out.
    """

    def __init__(self, path: Path) -> None:
        """Raises InvalidData if the file is not one this version wrote, or holds nothing to train on."""
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except (pa.ArrowException, OSError) as error:
            raise InvalidData(f"The tokenised rows in {path.name} cannot be read: {str(error)[:200]}") from None
        self.max_length = int((reader.schema.metadata or {})[b"max_length"])
        self._ids: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
        lengths, supervised, places, truncated, seen = [], [], [], 0, 0
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            ids, labels = batch.column(0), batch.column(1)
            starts = ids.offsets.to_numpy()
            flat_ids, flat_labels = ids.values.to_numpy(), labels.values.to_numpy()
            self._ids.append((flat_ids, flat_labels))
            kept = np.flatnonzero(np.diff(starts))
            lengths.append(np.diff(starts)[kept])
            counted = np.concatenate([[0], np.cumsum(flat_labels != IGNORE)])
            # The first position of a row never carries loss: nothing predicts it.
            supervised.append(counted[starts[kept + 1]] - counted[starts[kept] + 1])
            places.append(np.stack([np.full(len(kept), number), starts[kept]], axis=1))
            truncated += batch.column(2).true_count
            seen += batch.num_rows
        self.lengths: NDArray[np.int64] = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        if not len(self.lengths):
            raise InvalidData(f"No row has a token to train on within max_length = {self.max_length}; raise max_length.")
        self.supervised: NDArray[np.int64] = np.concatenate(supervised)
        self._places = np.concatenate(places)
        self.truncated, self.skipped = truncated, seen - len(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """ids and labels of one row, each [length], as views of the file."""
        batch, start = self._places[index]
        ids, labels = self._ids[batch]
        part = slice(start, start + self.lengths[index])
        return ids[part], labels[part]


def tokenised(
    examples: Iterable[Example], digest: str, tokenizer: PreTrainedTokenizerBase, max_length: int, cache: Path
) -> TokenRows:
    """The rows of a data set with this content `digest` for this tokenizer, from the folder `cache` or rendered into it.

    Every row is cut to max_length tokens; long plain text becomes several rows instead. Raises InvalidData for a row
    that cannot be rendered, InvalidModel without a fast tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InvalidModel("This base has no fast tokenizer (tokenizer.json), which is needed to find the answers' tokens.")
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{_key(digest, tokenizer, max_length)}.arrow"
    if not path.exists():
        staged = path.with_suffix(f".{os.getpid()}.new")
        try:
            _write(staged, examples, tokenizer, max_length)
            os.replace(staged, path)
        finally:
            staged.unlink(missing_ok=True)
    rows = TokenRows(path)
    path.touch()
    _forget_oldest(cache, keep=path)
    return rows


def _key(digest: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """What the file's content depends on: the data, the tokenizer with its chat template, the length, the rendering."""
    about = [_VERSION, digest, max_length, tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.eos_token]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def _write(path: Path, examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    schema = _SCHEMA.with_metadata({"max_length": str(max_length)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        waiting: list[tuple[Rendered, bool]] = []
        for cut in _cut_rows(examples, tokenizer, max_length):
            waiting.append(cut)
            if len(waiting) == _BATCH_ROWS:
                writer.write_batch(_batch(waiting, schema))
                waiting = []
        if waiting:
            writer.write_batch(_batch(waiting, schema))


def _cut_rows(
    examples: Iterable[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[tuple[Rendered, bool]]:
    """Every row cut to max_length, and whether it was; a row without a trained token comes out empty."""
    for example in examples:
        whole = render(example, tokenizer)
        cut = len(whole.ids) > max_length
        starts = range(0, max(1, len(whole.ids)), max_length) if not example.messages else (0,)
        for start in starts:
            part = Rendered(whole.ids[start : start + max_length], whole.labels[start : start + max_length])
            yield part if part.supervised else Rendered([], []), cut and start == 0


def _batch(rows: list[tuple[Rendered, bool]], schema: pa.Schema) -> pa.RecordBatch:
    columns = [[row.ids for row, _ in rows], [row.labels for row, _ in rows], [cut for _, cut in rows]]
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def _forget_oldest(cache: Path, keep: Path) -> None:
    """Bring the cache back under its size; what goes can be rendered again."""
    files = sorted((path for path in cache.glob("*.arrow") if path != keep), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in files) + keep.stat().st_size
    for path in files:
        if total <= _KEPT_BYTES:
            return
        total -= path.stat().st_size
        path.unlink()
