"""What an evaluation of a classifier comes to: figures, a table by label and the confusions, from counts that
can be added up. Needs no torch.

Counts of single labels are [labels, labels]: rows by their own label and by the one that was told. Of several
labels [labels, 4]: true and false positives, false and true negatives. Of numbers [5]: rows, the sums of the
values and of their squares, measured from any one number, and of the squared and of the absolute errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.labels import MULTI, REGRESSION, LabelSet

_MULTI_COUNTS, _VALUE_COUNTS = 4, 5
Floats = NDArray[np.float64]


def counts_width(labels: LabelSet) -> int:
    """How many counts there are."""
    if labels.problem_type == REGRESSION:
        return _VALUE_COUNTS
    return len(labels) * (_MULTI_COUNTS if labels.problem_type == MULTI else len(labels))


def metrics_and_report(
    labels: LabelSet, rows_right: tuple[float, int], counts: Sequence[float]
) -> tuple[dict[str, float], dict[str, Any]]:
    """The figures by name, and what is kept to be drawn. rows_right: 100 for each row that is wholly right,
    and how many rows there are.

    The report holds problem_type, labels; by_label, a list of precision, recall, f1 and support of each
    label; and for single labels confusion, [labels][labels] of counts.
    """
    about: dict[str, Any] = {"problem_type": labels.problem_type, "labels": list(labels.names)}
    if labels.problem_type == REGRESSION:
        found = _of_values(counts)
        return found, about | found
    table = np.asarray(counts, np.float64)[: counts_width(labels)].reshape(len(labels), -1)
    single = labels.problem_type != MULTI
    right, told, there = _confused(table) if single else _by_label(table)
    precision, recall = _share(right, told), _share(right, there)
    f1 = _share(2 * right, told + there)
    figures = {
        "accuracy": rows_right[0] / max(1, rows_right[1]),
        "macro_f1": 100.0 * float(f1[(told + there) > 0].mean()) if (told + there).any() else 0.0,
    }
    rows = zip(precision.tolist(), recall.tolist(), f1.tolist(), there.astype(int).tolist(), strict=True)
    by_label = [list(row) for row in rows]
    report = about | figures | {"by_label": by_label}
    return figures, report | ({"confusion": table.astype(int).tolist()} if single else {})


def _confused(table: Floats) -> tuple[Floats, Floats, Floats]:
    """Of each label: rows that are right, rows that it was told of, and its own rows."""
    return np.diagonal(table).copy(), table.sum(0), table.sum(1)


def _by_label(table: Floats) -> tuple[Floats, Floats, Floats]:
    right, wrong, missed, _ = table.T
    return right, right + wrong, right + missed


def _share(part: Floats, whole: Floats) -> Floats:
    """0 where there is nothing, as scikit-learn has it."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _of_values(counts: Sequence[float]) -> dict[str, float]:
    rows, total, squares, squared_error, error = counts[:_VALUE_COUNTS]
    spread = squares - total**2 / max(1.0, rows)
    found = {"mean_error": error / max(1.0, rows)}
    return found | ({"r2": 1.0 - squared_error / spread} if spread > 1e-12 else {})


def table_lines(report: Mapping[str, Any]) -> list[tuple[str, float, float, float, int]]:
    """Label, precision, recall, F1 and support of each label, those with the lowest F1 first."""
    found = [
        (str(label), *row) for label, row in zip(report["labels"], report.get("by_label", []), strict=False)
    ]
    return sorted(found, key=lambda row: (row[3], row[0]))


def most_confused(report: Mapping[str, Any], most: int = 10) -> list[tuple[str, str, int]]:
    """Which label is taken for which, and how often; the most frequent first."""
    labels, table = report["labels"], report.get("confusion", [])
    pairs = [
        (labels[own], labels[told], count)
        for own, row in enumerate(table)
        for told, count in enumerate(row)
        if own != told and count
    ]
    return sorted(pairs, key=lambda pair: -pair[2])[:most]
