"""Data sets after they are in: their report, their rows, what is left out, their split, edits and versions.

Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from app.service.jobs import Jobs
from app.shared.csv_lines import csv_line
from app.shared.data_import import ImportRequest, import_dataset
from app.shared.engine_client import EngineClient
from app.shared.settings import Settings
from core.base_model.fingerprint import companions_hash
from core.data.chat_options import AS_THEY_ARE, ChatOptions
from core.data.checks import words_of
from core.data.dataset_file import DatasetFile, Findings, StoredRow
from core.data.findings import ERROR, KINDS, WARNING, RowFault, codes_of
from core.data.formats import Example, Message, plain_turn
from core.data.importing import Summary, rewritten
from core.data.split import FILE, Split
from core.data.turns import SPEAKERS, conversation
from core.data.version import Mask, Version, excluding, first_version, grown, split_anew, split_sentence
from core.errors import InvalidData
from core.reporting import Report, silent
from storage.blobs import content_digest, content_size
from storage.registry import Registry
from storage.tables import Base, Dataset, DatasetVersion, Job

SAMPLE_FILE = "captain_conversations.jsonl"
SAMPLE_NAME = "Captain's log (sample)"
ALL, ERRORS, WARNINGS, EXCLUDED, VALIDATION = (
    "all rows",
    "rows with errors",
    "rows with warnings",
    "rows left out",
    "validation rows",
)
FILTERS = (ALL, ERRORS, WARNINGS, EXCLUDED, VALIDATION)
_REPORT_FILE = "report.json"
_BY_TOKENS = (
    "template",
    "untrained",
    "over_length",
    "no_end",
    "several_sequences",
    "folded",
    "joined",
    "reasoning_inside",
    "thinking_closed",
    "name_left_out",
)  # found with a base's tokenizer only
_MOST_SHOWN = 400  # characters of a row in a list
_KEPT_OPEN = 8


@dataclass(frozen=True)
class Opened:
    """A version of a data set, read."""

    rows: DatasetFile
    version: Version
    findings: Findings
    summary: Summary | None


@dataclass(frozen=True)
class RowLine:
    """One row in a list."""

    index: int
    """Its place in the data set, from 0."""
    number: int
    file: str
    part: str
    said: str
    findings: tuple[tuple[str, str], ...]
    """(code, sentence) of each finding."""


@dataclass(frozen=True)
class BaseCheck:
    """What a base's tokenizer showed: statistics, what the chat template does right, and findings."""

    report: dict[str, Any]
    template: list[dict[str, Any]]
    findings: Findings


class Datasets:
    """Everything about data sets that are in the registry."""

    def __init__(self, registry: Registry, settings: Settings, engine: EngineClient, jobs: Jobs) -> None:
        self._registry, self._settings, self._engine, self._jobs = registry, settings, engine, jobs
        self._read = lru_cache(maxsize=_KEPT_OPEN)(self._open)
        self._searched = lru_cache(maxsize=_KEPT_OPEN)(self._search)

    def add(self, path: Path, name: str = "", report: Report = silent) -> Dataset:
        """Import one file as it is detected. Raises as import_dataset()."""
        return import_dataset(self._registry, ImportRequest([str(path)], name), report)

    def add_sample(self, name: str = "") -> Dataset:
        """Import the sample conversations that come with the workbench, unless they are there under this name
        already.
        """
        wanted = name or SAMPLE_NAME
        if wanted in self._registry.names(Dataset):
            return self._registry.find(Dataset, wanted)
        with resources.as_file(resources.files("assets") / SAMPLE_FILE) as path:
            return self.add(path, wanted)

    def import_files(self, request: ImportRequest) -> Job:
        """Start importing a data set. Raises NameTaken."""
        return self._jobs.start("import_data", request.to_dict())

    # Looking.

    def open(self, row: Dataset | DatasetVersion) -> Opened:
        """A version's rows, parts and findings.

        Raises NotFound or InvalidData if files are gone or damaged.
        """
        return self._read(row.digest, row.rows_digest)

    def _open(self, digest: str, rows_digest: str) -> Opened:
        blobs = self._registry.blobs
        folder = blobs.path(rows_digest)
        rows = DatasetFile(folder)
        # An earlier version of the workbench stored rows alone; they are split now as they would be on
        # import.
        version = (
            Version.read(blobs.path(digest))
            if digest != rows_digest
            else first_version(rows_digest, rows, Split())
        )
        findings = Findings.read(folder)
        if version.split.kind != FILE:  # those that came from a file for validation are trained on by now
            findings = findings.without("leakage")
        return Opened(rows, version, findings, Summary.read(folder))

    def lines(
        self,
        row: Dataset,
        shown: str = ALL,
        code: str = "",
        start: int = 0,
        count: int = 50,
        base: BaseCheck | None = None,
        words: str = "",
    ) -> tuple[list[RowLine], int]:
        """A part of the rows that a filter lets through and that hold all of the words, with what was found
        in each, and how many there are in all.
        """
        opened = self.open(row)
        found = [opened.findings, *([base.findings] if base else [])]
        indices = _filtered(opened, found, shown, code)
        if wanted := tuple(words.split()):
            holding = self._searched(row.rows_digest, wanted)
            indices = [index for index in indices if holding[index]]
        part = indices[start : start + count]
        about: dict[int, list[tuple[str, str]]] = {int(index): [] for index in part}
        for one in found:
            for finding in one.about(part):
                about[finding.index].append((finding.code, finding.detail))
        sources = opened.summary.sources if opened.summary else [row.source_name]
        return [_line(opened, int(index), sources, tuple(about[int(index)])) for index in part], len(indices)

    def _search(self, rows_digest: str, words: tuple[str, ...]) -> Mask:
        return DatasetFile(self._registry.blobs.path(rows_digest)).holding(words)

    def row(self, row: Dataset, index: int) -> StoredRow:
        """One row. Raises InvalidData if there is no such row."""
        return self.open(row).rows.stored(index)

    def csv(self, row: Dataset, base: BaseCheck | None = None) -> Iterator[str]:
        """All findings as CSV lines.

        Cells that a spreadsheet would take for a formula get an apostrophe in front.
        """
        opened = self.open(row)
        numbers, files = opened.rows.column("row"), opened.rows.column("file")
        sources = opened.summary.sources if opened.summary else [row.source_name]
        yield csv_line(["file", "row", "level", "finding", "detail", "left out", "remedy"])
        for one in [opened.findings, *([base.findings] if base else [])]:
            for finding in one.some():
                kind, at = finding.kind, finding.index
                place = [sources[files[at] or 0], numbers[at]] if at >= 0 else ["", ""]
                left_out = "yes" if at >= 0 and opened.version.excluded[at] else "no"
                yield csv_line([*place, kind.level, kind.title, finding.detail, left_out, kind.remedy])

    # A base's view of the rows.

    def check(self, dataset: str, base: str, max_length: int) -> Job:
        """Start checking a data set with a base's tokenizer. Raises NotFound."""
        row, model = self._registry.find(Dataset, dataset), self._registry.find(Base, base)
        return self._jobs.start("check_data", self.check_arguments(row, model, max_length))

    def check_arguments(self, row: Dataset, base: Base, max_length: int) -> dict[str, Any]:
        """The arguments of the job that checks a data set with a base's tokenizer."""
        blobs = self._registry.blobs
        return {
            "of": row.name,
            "rows": str(blobs.path(row.rows_digest)),
            "version": str(blobs.path(row.digest)) if row.digest != row.rows_digest else "",
            "digest": row.rows_digest,
            "base": base.name,
            "max_length": max_length,
            "out": str(self._check_folder(row, base, max_length)),
        }

    def check_rows(
        self, folder: Path, base: str, max_length: int, out: Path, chat: ChatOptions = AS_THEY_ARE
    ) -> Job:
        """Start checking rows that are in no registry: `folder` as the import leaves it, chat as it is to be
        fitted.

        The result goes into `out`.
        """
        arguments = {
            "of": "a file",
            "rows": str(folder),
            "version": "",
            "chat": chat.to_dict(),
            "digest": content_digest(folder),
            "base": base,
            "max_length": max_length,
            "out": str(out),
        }
        return self._jobs.start("check_data", arguments)

    def checked(self, row: Dataset, base: Base, max_length: int) -> BaseCheck | None:
        """What that job found, if it has been done for exactly this version, base and length."""
        folder = self._check_folder(row, base, max_length)
        return read_check(folder) if (folder / _REPORT_FILE).is_file() else None

    def _check_folder(self, row: Dataset, base: Base, max_length: int) -> Path:
        about = [
            row.digest,
            base.fingerprint,
            companions_hash(Path(base.folder)),
            base.template,
            max_length,
        ]
        return self._settings.cache / "checks" / hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def tokens(self, row: Dataset, base: str, index: int, template: str | None = None) -> dict[str, Any]:
        """A row as the base's tokens: {"sequences": [{"tokens", "count", "trained"}], "notes"}; `template`
        tries another known template.

        Raises InvalidData with the reason if the template refuses the row, EngineUnavailable.
        """
        fault = self.row(row, index).fault
        if fault:
            raise InvalidData(f"The row has an error ({KINDS[fault].title.lower()}), so it has no tokens.")
        chat = self.open(row).version.chat.to_dict()
        return self._engine.tokens(base, row.rows_digest, index, template, chat)

    # Changing: each change is a new version.

    def leave_out(
        self, name: str, codes: Sequence[str] = (), rows: Sequence[int] = (), base: BaseCheck | None = None
    ) -> Dataset:
        """Leave out rows, or all rows with findings of these kinds.

        They are kept, and can be brought back.
        """
        row = self._registry.find(Dataset, name)
        opened = self.open(row)
        still = ~opened.version.excluded
        wanted = {index for index in rows if 0 <= index < len(still) and still[index]}
        kinds = set()
        for found in [opened.findings, *([base.findings] if base else [])]:
            for code in codes:
                of_kind = {index for index in found.indices(code) if still[index]}
                kinds |= {code} if of_kind else set()
                wanted |= of_kind
        if not wanted:
            needs_base = [KINDS[code].title.lower() for code in codes if code in _BY_TOKENS and base is None]
            hint = (
                f" To find rows by {', '.join(needs_base)}, check the data set with a base first."
                if needs_base and rows == ()
                else ""
            )
            raise InvalidData(f"There are no such rows, or all of them are left out already.{hint}")
        titles = ", ".join(kind.title.lower() for kind in KINDS.values() if kind.code in kinds)
        change = (
            f"{len(wanted):,} row{'s' if len(wanted) > 1 else ''} left "
            f"out{f': {titles}' if 0 < len(titles) < 200 else ''}"
        )
        return self._keep(row, opened, excluding(opened.version, sorted(wanted)), change)

    def bring_back(self, name: str, rows: Sequence[int] | None = None) -> Dataset:
        """Bring rows back that were left out, by default all."""
        row = self._registry.find(Dataset, name)
        opened = self.open(row)
        excluded = opened.version.excluded
        given = range(len(excluded)) if rows is None else rows
        wanted = [index for index in given if 0 <= index < len(excluded) and excluded[index]]
        if not wanted:
            raise InvalidData("No such row is left out.")
        change = f"{len(wanted):,} row{'s' if len(wanted) > 1 else ''} brought back"
        return self._keep(row, opened, excluding(opened.version, wanted, back=True), change)

    def split(self, name: str, split: Split) -> Dataset:
        """Choose the validation rows anew. Raises InvalidConfig."""
        row = self._registry.find(Dataset, name)
        opened = self.open(row)
        files = opened.summary.validation_files if opened.summary else []
        version = split_anew(opened.version, opened.rows, split, files if split.kind == FILE else ())
        if (version.validation == opened.version.validation).all() and version.split == opened.version.split:
            raise InvalidData(f"{name} is split like that already: {split_sentence(version, opened.rows)}.")
        return self._keep(row, opened, version, f"split: {split_sentence(version, opened.rows)}")

    def fit(self, name: str, chat: ChatOptions) -> Dataset:
        """Choose anew how conversations are fitted to a base's chat template, and what that is given.

        Raises InvalidData where it is chosen so already.
        """
        row = self._registry.find(Dataset, name)
        opened = self.open(row)
        if chat == opened.version.chat:
            raise InvalidData(f"{name} is given to chat templates like that already.")
        said = chat.sentence() or "as they are, and templates are given nothing beside them"
        return self._keep(row, opened, replace(opened.version, chat=chat), f"conversations: {said}")

    def edit(self, name: str, index: int, turns: Sequence[tuple[str, str]]) -> Dataset:
        """Give a row other turns: (role, text) pairs, or a single ("text", text). Its label, and turns that
        are not trained on, stay so. Raises InvalidData.
        """
        row = self._registry.find(Dataset, name)
        stored = self.row(row, index)
        changed = _marked_as(stored.example, edited(stored.number, turns, stored.example))
        return self._rewrite(row, {index: changed}, [], f"row {stored.number} changed")

    def begin(self, name: str, turns: Sequence[tuple[str, str]]) -> Dataset:
        """A new data set with one row. Raises NameTaken, InvalidData."""
        row = {"messages": [{"role": role, "content": content} for role, content in turns]}
        with self._registry.blobs.staging() as staging:
            file = staging / "conversations.jsonl"
            file.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
            return self.add(file, name)

    def append(self, name: str, turns: Sequence[tuple[str, str]]) -> Dataset:
        """Add a row at the end. Raises InvalidData."""
        row = self._registry.find(Dataset, name)
        number = max((one for one in self.open(row).rows.column("row")), default=0) + 1
        return self._rewrite(row, {}, [edited(number, turns)], f"row {number} added")

    def go_back(self, name: str, number: int) -> Dataset:
        """Make an earlier version the newest again, as a version of its own. Raises InvalidData."""
        row = self._registry.find(Dataset, name)
        old = next(
            (one for one in self._registry.datasets.versions(row.id or 0) if one.number == number), None
        )
        if old is None:
            raise InvalidData(f"{name} has no version {number}; it has 1 to {row.version}.")
        if old.digest == row.digest:
            raise InvalidData(f"{name} is as it was in version {number}.")
        opened = self.open(old)
        row.rows_digest, row.digest = old.rows_digest, old.digest
        return self._registry.datasets.add_version(_counted(row, opened), f"back to version {number}")

    def remove(self, name: str) -> None:
        """Delete a data set with all its versions. Raises NotFound, or InUse while a run needs it."""
        self._registry.datasets.remove(self._registry.find(Dataset, name))

    def _rewrite(
        self, row: Dataset, changes: dict[int, Example], added: list[Example], change: str
    ) -> Dataset:
        opened = self.open(row)
        if opened.summary is None:
            raise InvalidData(
                f"{row.name} was imported by an earlier version of the workbench; import the file again "
                "to edit its rows."
            )
        with self._registry.blobs.staging() as staging:
            folder = staging / "rows"
            folder.mkdir()
            summary = rewritten(
                self._registry.blobs.path(row.rows_digest), changes, added, opened.summary, folder
            )
            count, row.size_bytes = summary.rows, content_size(folder)
            digest = self._registry.blobs.put(folder)
        row.rows_digest, row.rows, row.preview = digest, count, summary.preview
        version = grown(opened.version, digest, count)
        reopened = Opened(DatasetFile(self._registry.blobs.path(digest)), version, Findings(), summary)
        return self._keep(row, reopened, version, change)

    def _keep(self, row: Dataset, opened: Opened, version: Version, change: str) -> Dataset:
        """Store a version and make it the newest.

        Raises InvalidData if it would leave nothing to train on.
        """
        if not (version.usable(opened.rows) & ~version.validation).any():
            raise InvalidData("That would leave no row to train on.")
        with self._registry.blobs.staging() as staging:
            folder = staging / "version"
            folder.mkdir()
            version.write(folder)
            row.digest = self._registry.blobs.put(folder)
        return self._registry.datasets.add_version(
            _counted(row, Opened(opened.rows, version, opened.findings, opened.summary)), change
        )


def read_check(folder: Path) -> BaseCheck:
    """What the checking job wrote."""
    content = json.loads((folder / _REPORT_FILE).read_text(encoding="utf-8"))
    return BaseCheck(content["report"], content["template"], Findings.read(folder))


def edited(number: int, turns: Sequence[tuple[str, str]], before: Example | None = None) -> Example:
    """A row that somebody typed; what turns of the row `before` have beside their text stays with them, and
    so do its tools. Raises InvalidData for what cannot be trained on.
    """
    given = [(role.strip().lower(), text) for role, text in turns if role.strip() or text.strip()]
    if [role for role, _ in given] == ["text"]:
        if not given[0][1].strip():
            raise InvalidData("The text is empty.")
        return Example(number, text=given[0][1])
    unknown = [role for role, _ in given if role not in SPEAKERS]
    if unknown or not given:
        raise InvalidData(
            f"The role {unknown[0]!r} is not known; use system, user, assistant or tool."
            if unknown
            else "The row is empty."
        )
    try:
        said = _with_what_was_beside([plain_turn(SPEAKERS[role], text) for role, text in given], before)
        found = conversation(number, said)
        return replace(found, tools=before.tools, template_kwargs=before.template_kwargs) if before else found
    except RowFault as fault:
        raise InvalidData(fault.detail) from None


def _with_what_was_beside(turns: list[Message], before: Example | None) -> list[Message]:
    """Turns with the reasoning, calls and names of those that stood at their place, or said the same."""
    old = before.messages if before else ()
    if [turn["role"] for turn in old] == [turn["role"] for turn in turns]:
        return [{**was, **turn} for was, turn in zip(old, turns, strict=True)]
    beside = {(was["role"], was["content"]): was for was in old}
    return [{**beside.get((turn["role"], turn["content"]), {}), **turn} for turn in turns]


def _marked_as(before: Example, changed: Example) -> Example:
    """A changed row with the label it had; a turn at the same place, or with the same words, stays untrained.

    Raises InvalidData if nothing would be trained on.
    """
    same = [turn["role"] for turn in before.messages] == [turn["role"] for turn in changed.messages]
    silent = [before.messages[at] for at in before.untrained]
    untrained = (
        before.untrained
        if same
        else frozenset(at for at, turn in enumerate(changed.messages) if turn in silent)
    )
    answers = {at for at, turn in enumerate(changed.messages) if turn["role"] == "assistant"}
    if answers and answers <= untrained:
        raise InvalidData("Every answer of the row is marked as not trained, so nothing is trained on.")
    return replace(changed, untrained=untrained, label=before.label)


def _counted(row: Dataset, opened: Opened) -> Dataset:
    version, usable = opened.version, opened.version.usable(opened.rows)
    row.validation_rows = int((version.validation & usable).sum())
    row.excluded_rows, row.faulty_rows = int(version.excluded.sum()), version.faulty(opened.rows)
    if opened.summary:
        row.rows, row.preview = opened.summary.rows, opened.summary.preview
        row.warnings = opened.summary.warnings
    return row


def _filtered(opened: Opened, found: Sequence[Findings], shown: str, code: str) -> Sequence[int] | np.ndarray:
    """The rows that a filter lets through, in order."""
    if code:
        return sorted({index for one in found for index in one.indices(code)})
    if shown == ALL:
        return np.arange(len(opened.rows))
    if shown in (EXCLUDED, VALIDATION):
        return np.flatnonzero(opened.version.excluded if shown == EXCLUDED else opened.version.validation)
    codes = codes_of(ERROR if shown == ERRORS else WARNING)
    return sorted({index for one in found for index in one.indices(*codes)})


def _line(
    opened: Opened, index: int, sources: Sequence[str], findings: tuple[tuple[str, str], ...]
) -> RowLine:
    stored = opened.rows.stored(index)
    said = " → ".join(map(words_of, stored.example.messages)) or stored.example.text or stored.raw
    version = opened.version
    part = (
        "left out"
        if version.excluded[index]
        else "error"
        if stored.fault
        else "validation"
        if version.validation[index]
        else "train"
    )
    file = sources[stored.file] if stored.file < len(sources) else ""
    return RowLine(index, stored.number, file, part, said[:_MOST_SHOWN], findings)
