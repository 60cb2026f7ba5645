"""Rows to classify: each text as the tokenizer gives it, with its own special tokens around it, and its label
as numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from core.data.dataset_file import StoredRow
from core.data.labels import REGRESSION, LabelSet, label_set, text_and_label
from core.data.packing import OVER_LENGTH
from core.data.plain_texts import cut
from core.data.tokens import Mask, RowsAsked, TokenFile, TokenRows
from core.errors import InvalidConfig, InvalidData


class LabelledRows(TokenRows):
    """The rows that a classifier is trained and judged on, cut to max_length as transformers cuts them."""

    def __init__(
        self,
        file: TokenFile,
        max_length: int,
        targets: NDArray[np.float32],
        labels: LabelSet,
        *,
        closing: int = 0,
        keep: Mask | None = None,
        validation: Mask | None = None,
        over_length: str = "truncate",
        goes_on: bool = False,
    ) -> None:
        """targets [rows of the data set, labels.width]; keep and validation as in TokenRows.
        closing: how many ids stay where a row is cut off. goes_on: whether the labels are those of the head
        that the base's files hold, which is to be trained on.

        Raises InvalidData for a row that could not be rendered, or if nothing is left.
        """
        if over_length not in OVER_LENGTH:
            raise InvalidConfig(f"over_length must be one of {', '.join(OVER_LENGTH)}, not {over_length!r}.")
        if over_length == "split":
            raise InvalidConfig(
                "over_length = split cannot be used to classify, since a label is told of the whole text; "
                "choose truncate or drop."
            )
        self.file, self.max_length, self.labels, self.closing = file, max_length, labels, closing
        self.asked = RowsAsked(over_length, keep, validation)
        self.goes_on, self.all_targets = goes_on, targets
        wanted = np.ones(len(file), bool) if keep is None else keep
        _refuse_failed(file, wanted)
        long = wanted & (file.lengths > max_length)
        chosen = wanted & (file.lengths > 0)
        self._rows = np.flatnonzero(chosen & ~long if over_length == "drop" else chosen)
        if not len(self._rows):
            raise InvalidData(f"No row is left within max_length = {max_length}; raise max_length.")
        self.truncated, self.skipped = int(long.sum()), int(chosen.sum()) - len(self._rows)
        self.sources = file.rows[self._rows]
        self.lengths = np.minimum(file.lengths[self._rows], max_length)
        self.supervised = np.ones(len(self._rows), np.int64)
        self.validation = np.zeros(len(self._rows), bool) if validation is None else validation[self._rows]
        self.targets: NDArray[np.float32] = targets[self._rows]
        """[rows, labels.width]."""

    @cached_property
    def centre(self) -> float:
        """The mean of the rows' values; 0 where their targets are labels."""
        return float(self.targets.mean(dtype=np.float64)) if self.labels.problem_type == REGRESSION else 0.0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """ids of one row [length], and no labels of tokens [0]."""
        ids = self.file.ids(int(self._rows[index]))
        return cut(ids, self.max_length, self.closing), np.zeros(0, np.int32)


def _refuse_failed(file: TokenFile, wanted: Mask) -> None:
    failed = [row for row in file.problems if wanted[row]]
    if failed:
        more = f" So do {len(failed) - 1:,} more rows." if len(failed) > 1 else ""
        raise InvalidData(f"{file.problems[failed[0]]}{more}")


def labels_in(
    rows: Iterable[StoredRow], keep: Mask, problem_type: str, separator: str
) -> tuple[LabelSet, list[str | None]]:
    """The labels of a data set, and each row's own as it stands there; None for one that is not kept.

    Raises InvalidData.
    """
    found = [text_and_label(row.example)[1] if kept else None for row, kept in zip(rows, keep, strict=True)]
    return label_set(problem_type, (one for one in found if one is not None), separator), found


def targets_of(labels: LabelSet, said: Sequence[str | None], separator: str) -> NDArray[np.float32]:
    """Each row's target, [rows, labels.width]; zeros where a row says nothing."""
    found = np.zeros((len(said), labels.width), np.float32)
    for row, label in enumerate(said):
        if label is not None:
            found[row] = labels.target(label, separator)
    return found
