"""A run's rows as files that need no trust: arrays without pickle, JSON, and the rows' own Arrow file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from core.data.labelled_rows import LabelledRows
from core.data.labels import LabelSet
from core.data.tokens import TokenFile, TokenRows

_IDS, _MASKS, _ABOUT = "rows.arrow", "rows.npz", "rows.json"


def write_rows(rows: TokenRows, folder: Path) -> dict[str, Path]:
    """Write them into the existing folder; each file by its name. The ids stay where they are, if they are in
    a file.
    """
    asked, about = rows.asked, {"max_length": rows.max_length, "over_length": rows.asked.over_length}
    arrays: dict[str, Any] = {"keep": asked.keep, "validation": asked.validation}
    if isinstance(rows, LabelledRows):
        labels = [rows.labels.problem_type, *rows.labels.names]
        about |= {"closing": rows.closing, "goes_on": rows.goes_on, "labels": labels}
        arrays["targets"] = rows.all_targets
    else:
        about["each"] = asked.each
    (folder / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
    np.savez(folder / _MASKS, **{name: one for name, one in arrays.items() if one is not None})
    return {_ABOUT: folder / _ABOUT, _MASKS: folder / _MASKS, _IDS: _ids_file(rows.file.source, folder)}


def _ids_file(source: Path | pa.Buffer, folder: Path) -> Path:
    if isinstance(source, Path):
        return source
    (folder / _IDS).write_bytes(source)
    return folder / _IDS


def read_rows(folder: Path) -> TokenRows:
    """What write_rows() wrote, all files in one folder. Raises InvalidData."""
    about: dict[str, Any] = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    with np.load(folder / _MASKS, allow_pickle=False) as stored:
        arrays: dict[str, Any] = dict(stored)
    file, length = TokenFile(folder / _IDS), about.pop("max_length")
    if "labels" not in about:
        return TokenRows(file, length, **about, **arrays)
    kind, *names = about.pop("labels")
    return LabelledRows(file, length, labels=LabelSet(kind, tuple(names)), **about, **arrays)
