"""Which rows are kept for validation. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import InvalidConfig

NONE, SHARE, COUNT, FILE = "none", "share", "count", "file"
KINDS = (SHARE, COUNT, FILE, NONE)
_ROWS_FOR_VALIDATION = 10
_NEARLY = 0.9  # of the rows asked for
Mask = NDArray[np.bool_]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Split:
    """How validation rows are chosen. With `file` they are the rows of the files that were named for it."""

    kind: str = SHARE
    share: float = 0.05
    count: int = 0
    seed: int = 0
    stratify: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidConfig(f"A split is one of {', '.join(KINDS)}, not {self.kind!r}.")
        if self.kind == SHARE and not 0 < self.share <= 0.5:
            raise InvalidConfig(f"The validation share must be above 0 and at most 0.5, not {self.share:g}.")
        if self.kind == COUNT and self.count < 1:
            raise InvalidConfig(f"The number of validation rows must be at least 1, not {self.count}.")
        if not 0 <= self.seed < 2**31:
            raise InvalidConfig(f"The seed must be between 0 and 2,147,483,647, not {self.seed}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def sentence(self) -> str:
        """The split in words."""
        by = f"seed {self.seed}{', stratified by label' if self.stratify else ''}"
        return {
            NONE: "no validation rows",
            FILE: "validation rows from a file of their own",
            SHARE: f"{self.share:.0%} for validation, {by}",
            COUNT: f"{self.count:,} rows for validation, {by}",
        }[self.kind]


def assign(split: Split, hashes: Hashes, prompts: Hashes, labels: Sequence[str], from_files: Mask) -> Mask:
    """True for each validation row. A hash of 0 stands for a row that cannot be used; it is passed over.

    Rows that ask the same stay on one side, so that no validation row is answered in training; where too few
    differ for that, only rows that say exactly the same do. The rows may then be fewer than asked for.
    hashes, prompts, labels and from_files have one entry a row. Raises InvalidConfig if nothing would be left
    to train on, or if it is to be stratified and there are no labels.
    """
    if split.kind in (NONE, FILE):
        return from_files.copy() if split.kind == FILE else np.zeros(len(hashes), bool)
    usable = np.flatnonzero(hashes != 0)
    wanted = wanted_rows(split, len(usable))
    if split.kind == COUNT and wanted >= len(usable):
        raise InvalidConfig(
            f"{wanted:,} validation rows leave nothing to train on: the data set has {len(usable):,} "
            "usable rows."
        )
    if split.stratify and not any(labels):
        raise InvalidConfig("The split cannot be stratified: no column of the data is mapped to a label.")
    classes = [usable]
    if split.stratify:
        _, codes = np.unique(np.asarray(labels, object)[usable].astype(str), return_inverse=True)
        classes = [usable[codes == code] for code in range(codes.max() + 1)]
    counts = _counts([len(rows) for rows in classes], wanted)
    chosen = np.zeros(len(hashes), bool)
    for keys in (prompts, hashes):
        generator = np.random.default_rng(split.seed)
        chosen[:] = False
        for rows, count in zip(classes, counts, strict=True):
            chosen[_draw(rows, keys[rows], count, generator)] = True
        if chosen.sum() >= wanted * _NEARLY:
            break
    return chosen


def wanted_rows(split: Split, usable: int) -> int:
    """How many validation rows a split asks for of so many rows."""
    if split.kind == COUNT:
        return split.count
    wanted = round(usable * split.share) if split.kind == SHARE else 0
    return 1 if split.kind == SHARE and wanted == 0 and usable >= _ROWS_FOR_VALIDATION else wanted


def _counts(sizes: list[int], wanted: int) -> list[int]:
    """`wanted` shared out in proportion to the sizes, by largest remainders;
    no class gives all of its rows.
    """
    total = max(1, sum(sizes))
    exact = [wanted * size / total for size in sizes]
    counts = [min(int(one), max(0, size - 1)) for one, size in zip(exact, sizes, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda at: (counts[at] - exact[at], at))
    for at in by_remainder[: max(0, wanted - sum(counts))]:
        counts[at] = min(counts[at] + 1, max(0, sizes[at] - 1))
    return counts


def _draw(
    rows: NDArray[np.int64], hashes: Hashes, count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """About `count` rows at random, copies together: a group that no longer fits is passed over."""
    _, group, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    order = generator.permutation(len(sizes))
    taken, total = [], 0
    for one in order:
        if total + sizes[one] <= count:
            taken.append(one)
            total += sizes[one]
        if total == count:
            break
    return rows[np.isin(group, taken)]
