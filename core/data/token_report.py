"""What a data set is to one base: lengths, trained tokens, what a max length costs, and the faults that only
tokens show.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from core.data.dataset_file import Findings
from core.data.findings import Finding
from core.data.packing import OVER_LENGTH, pack
from core.data.tokens import TokenFile, TokenRows
from core.errors import InvalidData

_LENGTH_STEP = 64  # a recommended max length is a multiple of it
_BINS = 40
_MOST_PACKED = 200_000
_PERCENTILES = (50, 90, 95, 99, 100)
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Loss:
    """What a policy for rows above the max length costs, in rows that are left out and in tokens that carry
    loss.
    """

    rows: int
    tokens: int
    trained_tokens: int


@dataclass(frozen=True)
class TokenReport:
    """The statistics of one version of a data set for one base, at one max length. Lengths are in tokens."""

    max_length: int
    rows: int
    validation_rows: int
    tokens: int
    """Of all rows; what several sequences of a row begin with is counted once."""
    trained_tokens: int
    mean_length: float
    percentiles: dict[str, int]
    recommended_max_length: int
    """The 99th percentile of the lengths, rounded up to a multiple of 64, or what the base was built for."""
    over_length_rows: int
    policies: dict[str, Loss] = field(default_factory=dict)
    lengths: list[list[float]] = field(default_factory=list)
    """Histogram: [from, to, rows]."""
    shares: list[list[float]] = field(default_factory=list)
    """Histogram of the share of a row's tokens that carry loss: [from, to, rows]."""
    blocks: int = 0
    """Blocks of max_length tokens that the training rows pack into; of many rows an estimate from the first
    200,000.
    """
    filled: float = 0.0
    """Share of those blocks that is filled."""
    counts: dict[str, int] = field(default_factory=dict)
    """Findings by code."""
    sequences: int = 0
    """That the rows become; the lengths, shares and blocks are theirs."""
    train_sequences: int = 0
    most_sequences: int = 1
    """Of one row."""
    computed_tokens: int = 0
    """Of all sequences, which is what an epoch computes."""


def token_report(
    file: TokenFile, keep: Mask, validation: Mask, max_length: int, found: Findings, longest: int = 1 << 30
) -> TokenReport:
    """Statistics over the rows that are kept. longest: tokens of the longest row that the base
    was built for. Raises InvalidData if none of the rows has a token.
    """
    chosen = keep[file.rows] & (file.lengths > 0)
    lengths, trained = file.lengths[chosen], file.supervised()[chosen]
    judged = validation[file.rows]
    blocks, filled = _packing(file, chosen & ~judged, max_length)
    if not len(lengths):
        raise InvalidData(_why_none(file, keep))
    return TokenReport(
        max_length=max_length,
        rows=len(np.unique(file.rows[chosen])),
        validation_rows=len(np.unique(file.rows[chosen & judged])),
        tokens=int((lengths - file.shared[chosen]).sum()),
        trained_tokens=int(trained.sum()),
        mean_length=float(lengths.mean()),
        percentiles={str(at): int(np.percentile(lengths, at, method="higher")) for at in _PERCENTILES},
        recommended_max_length=min(recommended_length(lengths), longest),
        over_length_rows=len(np.unique(file.rows[chosen][lengths > max_length])),
        policies={policy: _loss(file, chosen, max_length, policy) for policy in OVER_LENGTH},
        lengths=_histogram(lengths, 0, int(lengths.max())),
        shares=_histogram(trained / lengths, 0.0, 1.0),
        counts=found.counts(),
        blocks=blocks,
        filled=filled,
        sequences=len(lengths),
        train_sequences=int((chosen & ~judged).sum()),
        most_sequences=int(np.bincount(file.rows[chosen]).max()),
        computed_tokens=int(lengths.sum()),
    )


def _why_none(file: TokenFile, keep: Mask) -> str:
    """Why no row has a token: the reason of the first, and how many there are."""
    reasons = [text for at, text in file.problems.items() if keep[file.rows[at]]]
    if not reasons:
        return "No row is left to render: all have faults, or were left out."
    others = f" No other of the {len(reasons):,} rows can be used either." if len(reasons) > 1 else ""
    return f"{reasons[0]}{others}"


def recommended_length(lengths: NDArray[np.int64]) -> int:
    """The 99th percentile, rounded up to a multiple of 64: it cuts one row in a hundred at most."""
    return math.ceil(int(np.percentile(lengths, 99, method="higher")) / _LENGTH_STEP) * _LENGTH_STEP


def _loss(file: TokenFile, chosen: Mask, max_length: int, policy: str) -> Loss:
    try:
        rows = _rows(file, chosen, max_length, policy)
    except InvalidData:  # nothing is left under this policy
        return Loss(
            len(np.unique(file.rows[chosen])),
            int(file.lengths[chosen].sum()),
            int(file.supervised()[chosen].sum()),
        )
    tokens, trained = int(file.lengths[chosen].sum()), int(file.supervised()[chosen].sum())
    return Loss(rows.skipped, tokens - int(rows.lengths.sum()), trained - int(rows.supervised.sum()))


def _rows(file: TokenFile, chosen: Mask, max_length: int, policy: str = "truncate") -> TokenRows:
    wanted = np.zeros(int(file.rows[-1]) + 1, bool)
    wanted[file.rows[chosen]] = True
    wanted[file.rows[list(file.problems)]] = False
    return TokenRows(file, max_length, keep=wanted, over_length=policy)


def _packing(file: TokenFile, chosen: Mask, max_length: int) -> tuple[int, float]:
    try:
        lengths = _rows(file, chosen, max_length).lengths
    except InvalidData:
        return 0, 0.0
    some = lengths[:_MOST_PACKED]
    filled = float(some.sum()) / (len(pack(some.tolist(), max_length, seed=0)) * max_length)
    return math.ceil(float(lengths.sum()) / (filled * max_length)), filled


def _histogram(values: NDArray[np.float64] | NDArray[np.int64], low: float, high: float) -> list[list[float]]:
    counts, edges = np.histogram(
        values, bins=min(_BINS, max(1, math.ceil(high))) if high > 1 else _BINS // 2, range=(low, high or 1)
    )
    return [[float(a), float(b), int(count)] for a, b, count in zip(edges, edges[1:], counts, strict=False)]


def _called(file: TokenFile, at: int) -> str:
    """A sequence of a row, in words."""
    first, last = np.searchsorted(file.rows, [file.rows[at], file.rows[at] + 1])
    return "the row" if last - first == 1 else f"its sequence {at - first + 1}"


def token_findings(file: TokenFile, keep: Mask, max_length: int, ends: Collection[int]) -> Findings:
    """The faults that only a tokenizer shows. `ends` are the ids that end an answer."""
    source, keep = file.rows, keep[file.rows]
    found = [Finding(int(source[at]), "template", text) for at, text in file.problems.items() if keep[at]]
    rows = sorted(set(source[keep].tolist()) & file.notes.keys())
    found += [Finding(row, *note) for row in rows for note in file.notes[row]]
    trained, trained_within = file.supervised(), file.supervised(max_length)
    rendered = keep & (file.lengths > 0)
    found += [
        Finding(int(source[row]), "untrained", "No token of the row carries loss.")
        for row in np.flatnonzero(rendered & (trained == 0))
    ]
    for row in np.flatnonzero(rendered & (file.lengths > max_length)).tolist():
        lost = int(trained[row] - trained_within[row])
        what = (
            "cut into several rows"
            if file.texts[row]
            else f"cut, {lost:,} of its {int(trained[row]):,} trained tokens lost"
        )
        nothing = " Nothing is left to train on." if trained_within[row] == 0 and not file.texts[row] else ""
        found.append(
            Finding(
                int(source[row]),
                "over_length",
                f"{int(file.lengths[row]):,} tokens; at {max_length:,} {_called(file, row)} is "
                f"{what}.{nothing}",
            )
        )
    endless = rendered & (trained > 0) & ~np.isin(file.ends, list(ends))
    found += [
        Finding(int(source[row]), "no_end", "Its last answer does not end with an end token.")
        for row in np.flatnonzero(endless)
    ]
    return Findings.of(found)
