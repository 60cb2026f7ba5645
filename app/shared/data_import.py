"""Bringing data in: what was asked for, what a file looks like before it is taken, and taking it.

Imports no torch.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core.data.chat_options import AS_THEY_ARE, ChatOptions
from core.data.dataset_file import DatasetFile
from core.data.detection import Detection, detect, detect_file
from core.data.findings import RowFault
from core.data.folders import folder_sources
from core.data.gzipped import GZIP
from core.data.hub import HUB_DATASET, fetch_dataset
from core.data.importing import Summary, import_files, row_shown
from core.data.mapping import Candidate, DataMapping, mapping_of
from core.data.reading import BadRow
from core.data.sample import Sample, sample_of
from core.data.split import FILE, SHARE, Split
from core.data.version import Version, first_version, split_sentence
from core.data.zipped import Source, readable, sources_of
from core.errors import InvalidData
from core.files.publish import require_space
from core.reporting import Report, silent
from storage.blobs import content_size
from storage.registry import Registry
from storage.tables import Dataset

_PREVIEW_ROWS = 3


@dataclass(frozen=True)
class ImportRequest:
    """What to import: files, zips, folders of files or one hub id; how to read it, and how to split it."""

    files: Sequence[str]
    name: str = ""
    validation: Sequence[str] = ()
    """Files whose rows are for validation only."""
    mapping: dict[str, Any] | None = None
    """None: what is detected, if there is no doubt."""
    split: Split = field(default_factory=Split)
    near_duplicates: bool = True
    chat: ChatOptions = AS_THEY_ARE
    """How its conversations are fitted to a base's chat template."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a job's arguments."""
        return asdict(self) | {
            "files": list(self.files),
            "validation": list(self.validation),
            "split": self.split.to_dict(),
            "chat": self.chat.to_dict(),
        }

    @classmethod
    def parse(cls, values: dict[str, Any]) -> ImportRequest:
        """From to_dict()'s values."""
        chat = ChatOptions.parse(values.get("chat", {}))
        return cls(**values | {"split": Split(**values["split"]), "chat": chat})

    @property
    def default_name(self) -> str:
        """The name of a data set that was given none."""
        first = Path(self.files[0])
        if not first.exists():
            return self.files[0].rpartition("/")[2].replace(":", " ")
        if first.is_dir():
            return first.resolve().name
        return Path(first.stem).stem if first.suffix.lower() == GZIP else first.stem


@dataclass(frozen=True)
class Look:
    """A file before it is taken: the formats that fit, and its first rows as one of them makes them."""

    detection: Detection
    chosen: Candidate | None
    """The mapping that the rows are shown with."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Rows with their number and either messages and text or a fault."""


def look_at(path: Path, mapping: DataMapping | None = None) -> Look:
    """The formats that fit a file, and its first rows, which are read once and kept for other mappings.

    Raises InvalidData if it cannot be read at all.
    """
    sample = sample_of(path)
    detection = detect(sample)
    chosen = Candidate(mapping, "as you say") if mapping else detection.chosen
    return Look(detection, chosen, _first_rows(sample, chosen.mapping) if chosen else [])


def _first_rows(sample: Sample, mapping: DataMapping) -> list[dict[str, Any]]:
    form, shown = mapping.data_format, []
    convert = form.converter(mapping)
    rows = form.gather(sample.first(by_line=form.by_line), mapping)
    for number, row in itertools.islice(rows, _PREVIEW_ROWS):
        try:
            if isinstance(row, BadRow):
                raise RowFault(row.code, row.detail)
            example = convert(number, row)
            shown.append(row_shown(example))
        except RowFault as fault:
            shown.append({"row": number, "messages": [], "text": "", "fault": fault.detail})
    return shown


def import_dataset(registry: Registry, request: ImportRequest, report: Report = silent) -> Dataset:
    """Read, check, split and register a data set; nothing is kept of one that fails.

    Raises InvalidData, InvalidConfig, NameTaken, OutOfSpace, SourceUnreachable.
    """
    return registry.datasets.add(*imported(registry, request, report))


def imported(registry: Registry, request: ImportRequest, report: Report = silent) -> tuple[Dataset, str]:
    """The same, but that the row is not registered yet; with it, what was done, in a sentence."""
    name = registry.require_free(Dataset, request.name or request.default_name)
    with registry.blobs.staging() as staging:
        rows_folder, version_folder = staging / "rows", staging / "version"
        summary = read_rows(request, staging, rows_folder, report)
        size = content_size(rows_folder)
        rows = DatasetFile(rows_folder)
        split = _split_for(request, summary)
        version = first_version("", rows, split, summary.validation_files)
        usable, faulty, said = version.usable(rows), version.faulty(rows), split_sentence(version, rows)
        rows_digest = registry.blobs.put(rows_folder)
        version = Version(rows_digest, split, version.validation, version.excluded, request.chat)
        version_folder.mkdir()
        version.write(version_folder)
        digest = registry.blobs.put(version_folder)
    mapping = DataMapping.parse(summary.mapping)
    row = Dataset(
        name=name,
        format=mapping.format,
        reason=mapping.sentence(),
        rows=summary.rows,
        digest=digest,
        size_bytes=size,
        source_name=", ".join(summary.sources)[:500],
        preview=summary.preview,
        rows_digest=rows_digest,
        mapping=summary.mapping,
        validation_rows=int((version.validation & usable).sum()),
        faulty_rows=faulty,
        warnings=summary.warnings,
    )
    return row, f"imported; {said}"


def read_rows(request: ImportRequest, staging: Path, folder: Path, report: Report = silent) -> Summary:
    """Read what is asked for into the new `folder`: rows, findings, summary. `staging` takes what is unpacked
    on the way.

    Raises InvalidData, InvalidConfig, OutOfSpace, SourceUnreachable.
    """
    sources = _sources(request, staging, report)
    require_space(folder, sum(source.path.stat().st_size for source in sources))
    mapping, near_misses = _mapping(request, sources[0])
    preferences = _preferences(sources, refused=request.mapping is None)
    folder.mkdir()
    try:
        return import_files(
            sources,
            mapping,
            folder,
            near=request.near_duplicates,
            near_misses=near_misses,
            preferences=preferences,
            detected=request.mapping is None,
            report=report,
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _mapping(request: ImportRequest, first: Source) -> tuple[DataMapping, tuple[str, ...]]:
    """The mapping that was given or is detected, and what looks misspelled. Raises as read_rows()."""
    if request.mapping is not None:
        return DataMapping.parse(request.mapping), ()
    detection = detect_file(first.path, first.name)
    return detection.require(first.name).mapping, detection.near_misses


def _preferences(sources: Sequence[Source], *, refused: bool) -> list[str]:
    """What is said of the files that hold preferences, each once; or an InvalidData, where nobody chose to
    train on part of them.
    """
    said = {}
    for source in sources:
        try:
            said[source.name] = detect_file(source.path, source.name).preferences
        except InvalidData:  # none of its first rows can be read: each says so in the report
            continue
    found = {name: text for name, text in said.items() if text}
    if found and refused:
        name, text = next(iter(found.items()))
        raise InvalidData(f"{name}: {text}")
    return list(dict.fromkeys(found.values()))


def _sources(request: ImportRequest, staging: Path, report: Report) -> list[Source]:
    if not request.files:
        raise InvalidData("There is no file to import.")
    if len(request.files) == 1 and is_hub_id(request.files[0]):
        found = fetch_dataset(request.files[0], staging / "hub", report)
    else:
        found = _unpacked(request.files, staging / "files", validation=False)
    return found + _unpacked(request.validation, staging / "validation", validation=True)


def is_hub_id(name: str) -> bool:
    """Whether a name that is no file here can be a data set of the hub; a mistyped file name is none."""
    return bool(HUB_DATASET.match(name)) and not Path(name).exists() and not name.lower().endswith(readable())


def _unpacked(files: Sequence[str], staging: Path, *, validation: bool) -> list[Source]:
    found = []
    for number, file in enumerate(files):
        path, place = Path(file).expanduser(), staging / str(number)
        if not path.exists():
            raise InvalidData(f"There is no {file} here: neither a file nor a folder. Check the path.")
        place.mkdir(parents=True)
        found += (folder_sources if path.is_dir() else sources_of)(path, place, validation=validation)
    return found


def _split_for(request: ImportRequest, summary: Summary) -> Split:
    """A validation file stands for the split, unless another was asked for in so many words."""
    return Split(FILE) if summary.validation_files and request.split == Split(SHARE) else request.split


def mapping_from(
    path: Path, pairs: Sequence[str], templates: Sequence[str], separator: str = ""
) -> dict[str, Any] | None:
    """The mapping that role=column pairs, templates and a separator describe; None if there are none.

    Raises InvalidConfig.
    """
    if not pairs and not templates and not separator:
        return None
    columns = detect(sample_of(path)).columns if path.exists() else ()
    found = mapping_of(pairs, templates, separator, columns)
    return found.to_dict() if found else None
