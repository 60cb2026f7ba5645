"""From files to a data set's folder: rows, findings and a summary.

One pass in bounded memory. Needs no torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.checks import text_of, warnings
from core.data.dataset_file import ROWS_FILE, SUMMARY_FILE, DatasetFile, Findings, RowsWriter, StoredRow
from core.data.detection import optional_columns, unused_hint
from core.data.duplicates import NearCopies, content_hash, earlier_copy, prompt_hash
from core.data.findings import ERROR, KINDS, WARNING, Finding, RowFault, codes_of
from core.data.formats import Convert, Example
from core.data.late_columns import Late, LateColumns
from core.data.mapping import DataMapping
from core.data.reading import BadRow, NumberedRows, Row, RowReader
from core.data.sample import sample_of
from core.data.turn_keys import is_nothing
from core.data.zipped import Source
from core.errors import InvalidData
from core.events import Progress
from core.reporting import Report, silent

_REPORT_ROWS = 2000
_MOST_LABELS = 2000  # a column with more different values is no label
_MOST_FINDINGS = 3_000_000
_PREVIEW_ROWS = 5
_MOST_COMPARED = 100_000  # characters of a row that near copies are told by
_ERRORS = codes_of(ERROR)
# Found when a row of the file is converted; what is stored of it does not show them again.
_AT_CONVERSION = ("ignored_part", "unused_key", "only_answers", "separator", "tools_read", "call_text")
# Columns that other tools train with, beside those that a format takes.
_BELONG = frozenset(
    (
        "tools",
        "functions",
        "chat_template_kwargs",
        "images",
        "image",
        "videos",
        "video",
        "audios",
        "audio",
        "weight",
        "loss_weight",
        "sample_weight",
        "loss_mask",
        "train",
        "reasoning",
        "reasoning_content",
        "thinking",
        "rationale",
        "chain_of_thought",
    )
)
_UNEVEN = 20  # times as many rows in the largest class as in the smallest
_FEW = 5  # times as many, where the smallest has a single row


@dataclass(frozen=True)
class Summary:
    """What is known of a data set's rows, all of it without a tokenizer."""

    rows: int
    sources: list[str]
    mapping: dict[str, Any]
    counts: dict[str, int] = field(default_factory=dict)
    """Findings by code."""
    turns: dict[str, int] = field(default_factory=dict)
    """Rows by their number of turns; plain text has 0."""
    roles: dict[str, int] = field(default_factory=dict)
    """Turns by role."""
    labels: dict[str, int] = field(default_factory=dict)
    """Rows by label, the most frequent first; empty if there are none, or too many."""
    characters: int = 0
    validation_files: list[int] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    near_duplicates: bool = False
    """Whether near duplicates were looked for."""
    preview: list[dict[str, Any]] = field(default_factory=list)

    @property
    def faulty(self) -> int:
        """Rows that have an error; each has one."""
        return sum(count for code, count in self.counts.items() if KINDS[code].level == ERROR)

    @property
    def warnings(self) -> int:
        """Findings that a person should look at."""
        return sum(count for code, count in self.counts.items() if KINDS[code].level == WARNING)

    @classmethod
    def read(cls, folder: Path) -> Summary | None:
        """That of a data set's folder; None where an earlier version of the workbench stored it."""
        path = folder / SUMMARY_FILE
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def row_shown(example: Example) -> dict[str, Any]:
    """A row as it is shown: plain values."""
    shown: dict[str, Any] = {"row": example.row, "messages": list(example.messages), "text": example.text}
    return shown | ({"tools": list(example.tools)} if example.tools else {})


class RowSink:
    """Takes rows one by one, checks them and writes them; finish() writes the findings and the summary."""

    def __init__(
        self, folder: Path, sources: Sequence[str], mapping: dict[str, Any], *, near: bool = False
    ) -> None:
        """near: whether to look for near duplicates, which takes about as long again as all the rest."""
        self._folder, self._sources, self._mapping = folder, list(sources), mapping
        self._writer = RowsWriter(folder / ROWS_FILE)
        self._findings: list[Finding] = []
        self._hashes: list[int] = []
        self._turns: Counter[int] = Counter()
        self._roles: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()
        self._characters = 0
        self._preview: list[dict[str, Any]] = []
        self._near = NearCopies() if near else None

    def __len__(self) -> int:
        return len(self._hashes)

    def take(self, number: int, file: int, row: Example | RowFault, raw: str = "") -> None:
        """One row, as it was converted or as it failed."""
        index = len(self._hashes)
        if isinstance(row, Example):
            fault = _encoding_fault(row)
            row = fault or row
        if isinstance(row, RowFault):
            self._note(index, row.code, row.detail)
            self._hashes.append(0)
            self._writer.write(StoredRow(number, file, Example(number), row.code, raw))
            return
        for code, detail in (*row.notes, *warnings(row)):
            self._note(index, code, detail)
        self._hashes.append(content_hash(row))
        if self._near is not None:
            self._near.add(index, _told_apart(row))
        self._count(row)
        self._show(row, file)
        self._writer.write(StoredRow(number, file, row, hash=self._hashes[-1], prompt=prompt_hash(row)))

    def _note(self, index: int, code: str, detail: str) -> None:
        if len(self._findings) < _MOST_FINDINGS:
            self._findings.append(Finding(index, code, detail))

    def _count(self, row: Example) -> None:
        self._turns[len(row.messages)] += 1
        self._roles.update([message["role"] for message in row.messages])
        self._characters += len(row.text) + sum([len(message["content"]) for message in row.messages])
        if row.label and len(self._labels) <= _MOST_LABELS:
            self._labels[row.label] += 1

    def _show(self, row: Example, file: int) -> None:
        if len(self._preview) < _PREVIEW_ROWS:
            of = {"file": self._sources[file]} if len(self._sources) > 1 else {}
            self._preview.append(row_shown(row) | of)

    def finish(
        self,
        *,
        validation_files: Sequence[int] = (),
        hints: Sequence[str] = (),
        about_all: Sequence[tuple[str, str]] = (),
        report: Report = silent,
    ) -> Summary:
        """Close the rows, look for copies among them, write what was found. Raises InvalidData if there is no
        row.

        about_all are findings, (code, sentence), about the data set as a whole.
        """
        self._writer.close()
        if not self._hashes:
            raise InvalidData(f"{', '.join(self._sources)[:200] or 'The data set'} holds no rows.")
        rows = DatasetFile(self._folder)
        report(Progress("Looking for duplicates"))
        self._find_copies(rows, set(validation_files))
        labels = dict(self._labels.most_common()) if len(self._labels) <= _MOST_LABELS else {}
        self._check_classes(labels)
        for code, detail in about_all:
            self._note(-1, code, detail)
        found = Findings.of(self._findings)
        found.write(self._folder)
        summary = Summary(
            rows=len(self._hashes),
            sources=self._sources,
            mapping=self._mapping,
            counts=found.counts(),
            turns={str(key): count for key, count in sorted(self._turns.items())},
            roles=dict(self._roles.most_common()),
            labels=labels,
            characters=self._characters,
            validation_files=list(validation_files),
            hints=list(hints),
            near_duplicates=self._near is not None,
            preview=self._preview,
        )
        (self._folder / SUMMARY_FILE).write_text(
            json.dumps(asdict(summary), ensure_ascii=False), encoding="utf-8"
        )
        return summary

    def _find_copies(self, rows: DatasetFile, validation_files: set[int]) -> None:
        hashes = np.array(self._hashes, np.uint64)
        numbers, files = rows.column("row"), rows.column("file")
        many = len(self._sources) > 1

        def place(index: int) -> str:
            return f"row {numbers[index]}{f' of {self._sources[files[index]]}' if many else ''}"

        earlier = np.where(hashes == 0, -1, earlier_copy(hashes))
        for index in np.flatnonzero(earlier >= 0).tolist():
            if (
                not validation_files
                or files[index] not in validation_files
                or files[earlier[index]] in validation_files
            ):
                self._note(index, "duplicate", f"The same as {place(int(earlier[index]))}.")
        if validation_files:
            self._find_leaks(rows, [file in validation_files for file in files], place)
        if self._near is not None:
            self._find_near(earlier, place)

    def _find_leaks(self, rows: DatasetFile, is_validation: list[bool], place: Any) -> None:
        """Validation rows whose question is trained on too."""
        trained: dict[int, int] = {}
        for at, row in enumerate(rows.all_stored()):
            if row.hash and not is_validation[at]:
                trained.setdefault(row.prompt, at)
        for at, row in enumerate(rows.all_stored()):
            if row.hash and is_validation[at] and (twin := trained.get(row.prompt)) is not None:
                same = "The row is" if self._hashes[twin] == row.hash else "The question is"
                self._note(at, "leakage", f"{same} also {place(twin)}, which is trained on.")

    def _find_near(self, earlier: NDArray[np.int64], place: Any) -> None:
        assert self._near is not None
        for index, other, likeness in self._near.find():
            if earlier[index] < 0:  # an exact copy is said to be one already
                self._note(index, "near_duplicate", f"About {likeness:.0%} the same as {place(other)}.")

    def _check_classes(self, labels: dict[str, int]) -> None:
        if len(labels) < 2:
            return
        (most, many), (least, few) = next(iter(labels.items())), list(labels.items())[-1]
        if many > _UNEVEN * few or (few == 1 and many >= _FEW):
            detail = (
                f"{len(labels)} classes, from {few:,} row{'s' if few > 1 else ''} ({least[:40]}) "
                f"to {many:,} ({most[:40]})."
            )
            self._note(-1, "class_balance", detail)


def import_files(
    sources: Sequence[Source],
    mapping: DataMapping,
    folder: Path,
    *,
    near: bool = True,
    near_misses: Sequence[str] = (),
    preferences: Sequence[str] = (),
    detected: bool = False,
    report: Report = silent,
) -> Summary:
    """Read all rows of `sources` into the empty `folder`. Faulty rows are kept as such, with the reason.

    near_misses are sentences about columns that look misspelled, preferences about answers that are compared
    or judged, where somebody chose to train on some of them. detected: whether nobody chose the mapping, so
    that a column it knows nothing of, and that its first rows did not have, is a reason to ask.

    Raises InvalidData if a file cannot be read at all, if no row of it can be used, or to ask.
    """
    sink = RowSink(folder, [source.name for source in sources], mapping.to_dict(), near=near)
    form = mapping.data_format
    wanted = mapping.used_columns()
    late = LateColumns(mapping, _judged(sources[0]))
    readers = [
        RowReader(source.path, name=source.name, by_line=form.by_line, skips=late.skips) for source in sources
    ]
    seen: Counter[str] = Counter()
    convert, total = form.converter(mapping), sum(reader.size for reader in readers)
    before, unread = 0, [name for source in sources for name in source.unread]
    for file, reader in enumerate(readers):
        for number, row in form.gather(_counted(reader, wanted, seen, late), mapping):
            if len(sink) % _REPORT_ROWS == 0:
                done = before + reader.position
                report(Progress(f"Reading {reader.name} ({done / 1e6:,.0f} MB)", min(1.0, done / total)))
            _take(sink, file, number, row, convert)
        before += reader.size
        unread += reader.unread
    validation = [file for file, source in enumerate(sources) if source.validation]
    matter = list(late.matter())
    if matter and detected:
        raise InvalidData(_asked(matter[0]))
    judging = preferences or [one.said for one in matter if one.judges]
    summary = sink.finish(
        validation_files=validation,
        report=report,
        hints=[
            *near_misses,
            *judging,
            *unused_hint(list(seen)),
            *([f"Left unread: {', '.join(unread[:12])}."] if unread else []),
        ],
        about_all=[
            *(("near_miss", text) for text in near_misses),
            *(("preferences", text) for text in judging),
            *_left_aside(seen, {one.column for one in matter if not one.judges}),
        ],
    )
    if summary.faulty == summary.rows:
        raise InvalidData(_none_usable(readers[0].name, summary, folder))
    return summary


def _none_usable(name: str, summary: Summary, folder: Path) -> str:
    """Why no row can be used: each kind of fault with its number of rows and an example, the most frequent
    first.
    """
    faults = sorted(
        (code for code in summary.counts if code in _ERRORS), key=lambda code: -summary.counts[code]
    )
    found, numbers = Findings.read(folder), DatasetFile(folder).column("row")
    said = []
    for code in faults:
        first = found.some([code], count=1)[0]
        said.append(
            f"{KINDS[code].title} in {summary.counts[code]:,}, such as row {numbers[first.index]}: "
            f"{first.detail}"
        )
    return f"{name}: none of the {summary.rows:,} rows can be used. {' '.join(said)}"


def _judged(source: Source) -> Sequence[Row]:
    """The rows that a file's format is told by; none where none of its first rows can be read."""
    try:
        return sample_of(source.path, source.name).good
    except InvalidData:  # each of them says so in the report
        return ()


def _asked(late: Late) -> str:
    return (
        f"The column {late.column!r} begins with {late.where}; the first rows have none. {late.said} "
        "In a terminal: --map ROLE=COLUMN."
    )


def _counted(reader: RowReader, wanted: set[str], seen: Counter[str], late: LateColumns) -> NumberedRows:
    """The rows, with the columns they have counted:
    what no mapping speaks of must not vanish without a word.

    Raises InvalidData if a file lacks the wanted columns altogether, judged by its first row that can be
    read.
    """
    judged = reader.kind.plain
    for number, row in reader:
        if not isinstance(row, BadRow):
            if not judged:
                _require_columns(reader.name, reader.header or tuple(row), wanted)
                judged = True
            _count_unused(row, wanted, seen)
            late.take(row, number, reader.name)
        yield number, row
    seen.update({column: count for column, count in reader.beside.items() if count})


def _count_unused(row: Row, wanted: set[str], seen: Counter[str]) -> None:
    """Count the columns with a value that no mapping speaks of."""
    if len(row) > len(wanted) or not row.keys() <= wanted:
        seen.update(key for key, value in row.items() if key not in wanted and not _is_empty(value))


def _is_empty(value: Any) -> bool:
    return is_nothing(value) or value in ("[]", "{}", "null")


def _require_columns(name: str, columns: Sequence[str], wanted: Collection[str]) -> None:
    if not set(wanted) & set(columns):
        raise InvalidData(
            f"{name} has none of the columns {', '.join(sorted(map(repr, wanted)))}; it has "
            f"{', '.join(map(repr, columns[:12]))}. Files that become one data set share one mapping."
        )


def _left_aside(unused: Mapping[str, int], late: Collection[str]) -> Iterator[tuple[str, str]]:
    """Findings about columns that are not used and look as if they belonged to the conversation; late: those
    that hold text and begin behind the first rows.
    """
    belong = optional_columns() | _BELONG
    for column, count in unused.items():
        if column.strip().lower() in belong or column in late:
            yield (
                "unused_column",
                (
                    f"The column {column!r}, which {count:,} row{'s have' if count > 1 else ' has'}, is not "
                    "used."
                ),
            )


def _told_apart(example: Example) -> str:
    """What tells a row from others: a system prompt is often the same in all."""
    said = [message["content"] for message in example.messages if message["role"] != "system"]
    return (example.text or "\n".join(said))[:_MOST_COMPARED]


def _take(sink: RowSink, file: int, number: int, row: Row | BadRow, convert: Convert) -> None:
    if isinstance(row, BadRow):
        sink.take(number, file, RowFault(row.code, row.detail), row.raw)
        return
    try:
        sink.take(number, file, convert(number, row))
    except RowFault as fault:
        sink.take(number, file, fault, _raw(row))


def _raw(row: Row) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, default=str)[:20_000].encode("utf-8", "replace").decode()
    except (RecursionError, ValueError):
        return ""


def _encoding_fault(example: Example) -> RowFault | None:
    """Text that is no Unicode: bytes that were not UTF-8, or half a surrogate pair, as broken JSON escapes
    give.
    """
    try:
        text_of(example).encode()
        example.label.encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            return RowFault("encoding", f"The text is not UTF-8: byte {code - 0xDC00:#04x}.")
        return RowFault("encoding", "The text holds half a character (an unpaired \\ud… escape).")
    return None


def rewritten(
    source: Path,
    changes: Mapping[int, Example],
    added: Sequence[Example],
    summary: Summary,
    folder: Path,
    report: Report = silent,
) -> Summary:
    """Write all rows of the data set in `source` into the empty `folder`, some changed, some added at the
    end.

    What was found in them is found anew.
    """
    sink = RowSink(folder, summary.sources, summary.mapping, near=summary.near_duplicates)
    before = Findings.read(source)
    details = {found.index: found.detail for found in before.some(_ERRORS)}
    notes: dict[int, list[tuple[str, str]]] = {}
    for found in before.some(_AT_CONVERSION):
        notes.setdefault(found.index, []).append((found.code, found.detail))
    about_all = [(found.code, found.detail) for found in before.about([-1]) if found.code != "class_balance"]
    for index, row in enumerate(DatasetFile(source).all_stored()):
        if index in changes:
            sink.take(row.number, row.file, changes[index])
        else:
            example = replace(row.example, notes=tuple(notes[index])) if index in notes else row.example
            kept = RowFault(row.fault, details.get(index, "")) if row.fault else example
            sink.take(row.number, row.file, kept, row.raw)
    for example in added:
        sink.take(example.row, 0, example)
    return sink.finish(
        validation_files=summary.validation_files, hints=summary.hints, about_all=about_all, report=report
    )
