"""One version of a data set: which rows are left out, which are for validation. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.chat_options import AS_THEY_ARE, ChatOptions
from core.data.dataset_file import DatasetFile
from core.data.duplicates import content_hash, prompt_hash
from core.data.split import COUNT, FILE, SHARE, Split, assign, wanted_rows
from core.errors import InvalidConfig, InvalidData

_ABOUT, _PARTS = "version.json", "parts.npy"
_VALIDATION, _EXCLUDED = 1, 2  # bits of a row's part
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Version:
    """rows is the digest of the rows' folder; validation and excluded have one entry a row."""

    rows: str
    split: Split
    validation: Mask
    excluded: Mask
    chat: ChatOptions = AS_THEY_ARE
    """How its conversations are fitted to a base's chat template, and what that is given."""

    def usable(self, rows: DatasetFile) -> Mask:
        """The rows that are trained or validated on: not left out, and without a fault."""
        return ~self.excluded & ~_faulty(rows)

    def faulty(self, rows: DatasetFile) -> int:
        """Rows with an error that have not been left out."""
        return int((_faulty(rows) & ~self.excluded).sum())

    def write(self, folder: Path) -> None:
        """Store it in the empty `folder`."""
        about: dict[str, Any] = {"rows": self.rows, "split": self.split.to_dict()}
        if self.chat != AS_THEY_ARE:
            about["chat"] = self.chat.to_dict()
        (folder / _ABOUT).write_text(json.dumps(about, sort_keys=True), encoding="utf-8")
        np.save(folder / _PARTS, (self.validation * _VALIDATION + self.excluded * _EXCLUDED).astype(np.uint8))

    @classmethod
    def read(cls, folder: Path) -> Version:
        """From where write() put it. Raises InvalidData if it is not readable."""
        try:
            about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            parts = np.load(folder / _PARTS, allow_pickle=False)
            return cls(
                about["rows"],
                Split(**about["split"]),
                (parts & _VALIDATION) > 0,
                (parts & _EXCLUDED) > 0,
                ChatOptions.parse(about.get("chat", {})),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidData(
                f"The stored version {folder.name[:12]} cannot be read: {str(error)[:200]}"
            ) from None


def first_version(
    rows_digest: str, rows: DatasetFile, split: Split, validation_files: Iterable[int] = ()
) -> Version:
    """All rows, split. Raises InvalidConfig if they cannot be split so."""
    return split_anew(
        Version(rows_digest, split, np.zeros(len(rows), bool), np.zeros(len(rows), bool)),
        rows,
        split,
        validation_files,
    )


def split_anew(
    version: Version, rows: DatasetFile, split: Split, validation_files: Iterable[int] = ()
) -> Version:
    """The same rows with other validation rows. What is left out stays left out. Raises InvalidConfig."""
    files = set(validation_files)
    if split.kind == FILE and not files:
        raise InvalidConfig("There is no validation file: name one when the data set is added.")
    from_files = np.array([file in files for file in rows.column("file")], bool)
    hashes, prompts = _hashes(rows)
    labels = [label or "" for label in rows.column("label")]
    validation = assign(split, np.where(version.excluded, 0, hashes), prompts, labels, from_files)
    anew = replace(version, split=split, validation=validation)
    usable = anew.usable(rows)
    if usable.any() and not (usable & ~validation).any():
        raise InvalidConfig("No row would be left to train on: every row that can be used is for validation.")
    return anew


def split_sentence(version: Version, rows: DatasetFile) -> str:
    """What a split was asked for, and what came of it where that is less or shares questions."""
    usable = version.usable(rows)
    kept, wanted = int((usable & version.validation).sum()), wanted_rows(version.split, int(usable.sum()))
    said = version.split.sentence()
    if version.split.kind in (SHARE, COUNT):
        prompts = _hashes(rows)[1]
        shared = int(
            np.isin(prompts[usable & version.validation], prompts[usable & ~version.validation]).sum()
        )
        said += f"; {kept:,} rows, since rows that say the same stay together" if kept < wanted else ""
        said += (
            f"; the questions of {shared:,} of them are trained on too, since too few differ"
            if shared
            else ""
        )
    return said


def grown(version: Version, rows_digest: str, count: int) -> Version:
    """The version for edited rows: those added at the end are trained on."""
    more = np.zeros(count - len(version.excluded), bool)
    validation, excluded = (np.concatenate([mask, more]) for mask in (version.validation, version.excluded))
    return replace(version, rows=rows_digest, validation=validation, excluded=excluded)


def excluding(version: Version, rows: Iterable[int], *, back: bool = False) -> Version:
    """With these rows left out, or brought back."""
    excluded = version.excluded.copy()
    excluded[np.fromiter(rows, np.int64)] = not back
    return replace(version, excluded=excluded)


def _faulty(rows: DatasetFile) -> Mask:
    return np.array([bool(fault) for fault in rows.column("fault")], bool)


def _hashes(rows: DatasetFile) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Of what each row says, and of what it asks."""
    stored = rows.column("hash"), rows.column("prompt")
    if len(rows) and None in (stored[0][0], stored[1][0]):  # an earlier version of the workbench kept none
        stored = [content_hash(example) for example in rows], [prompt_hash(example) for example in rows]
    return np.array(stored[0], np.uint64), np.array(stored[1], np.uint64)
