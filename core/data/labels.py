"""What a classifier tells: its labels, in the order of its scores, and what kind of answer they are.

A row's label is its answer: the assistant's words behind the user's text. Needs no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.formats import Example
from core.data.tool_calls import parsed
from core.errors import InvalidData

SINGLE, MULTI, REGRESSION = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)
PROBLEM_TYPES = (SINGLE, MULTI, REGRESSION)
"""As transformers' configurations call them."""
VALUE = "value"
"""What the one score of a regression is called."""
_MOST_LABELS, _LONGEST = 10_000, 500
_SHOWN = 3


@dataclass(frozen=True)
class LabelSet:
    """The labels of one classifier."""

    problem_type: str
    names: tuple[str, ...]
    """In the order of the scores."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def width(self) -> int:
        """Numbers of a row's target: the place of its label, its value, or 0 or 1 for each label."""
        return len(self.names) if self.problem_type == MULTI else 1

    def target(self, label: str, separator: str) -> list[float]:
        """A row's target, [width]. Raises InvalidData for a label that is none of these."""
        if self.problem_type == REGRESSION:
            return [value_of(label)]
        if self.problem_type == SINGLE:
            return [float(self._place(label.strip()))]
        there = {self._place(one) for one in parts_of(label, separator)}
        return [float(place in there) for place in range(len(self.names))]

    def _place(self, name: str) -> int:
        try:
            return self.names.index(name)
        except ValueError:
            raise InvalidData(f"{name[:80]!r} is none of the classifier's labels.") from None

    def to_json(self) -> str:
        """As an adapter's file records it."""
        return json.dumps({"problem_type": self.problem_type, "names": self.names}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> LabelSet | None:
        """What to_json() gave, or None for anything else: files come from strangers."""
        try:
            said: Any = json.loads(text)
            kind, names = said["problem_type"], said["names"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        sound = kind in PROBLEM_TYPES and isinstance(names, list) and 0 < len(names) <= _MOST_LABELS
        if not sound or not all(isinstance(name, str) and 0 < len(name) <= _LONGEST for name in names):
            return None
        return cls(kind, tuple(names)) if len(set(names)) == len(names) else None


def numbered(labels: int) -> LabelSet:
    """Labels of which only the number is known, called as transformers calls them."""
    return LabelSet(SINGLE, tuple(f"LABEL_{place}" for place in range(labels)))


def stored_labels(config: dict[str, Any]) -> LabelSet | None:
    """Those that a model's config.json names; None where it names none."""
    names, kind = config.get("id2label"), config.get("problem_type") or SINGLE
    if not isinstance(names, dict) or kind not in PROBLEM_TYPES:
        return None
    try:
        ordered = [str(names[place]) for place in sorted(names, key=int)]
    except (ValueError, TypeError):
        return None
    return LabelSet(kind, tuple(ordered)) if ordered and len(set(ordered)) == len(ordered) else None


def text_and_label(example: Example) -> tuple[str, str]:
    """The two sides of a row. Raises InvalidData for a row that has others."""
    roles = [message["role"] for message in example.messages]
    if roles != ["user", "assistant"]:
        found = f"{len(roles)} turns ({', '.join(roles)[:60]})" if roles else "plain text"
        raise InvalidData(
            f"Row {example.row} is {found}; to classify, a row is one text and its label. Choose those two "
            "columns when the data is added, or another objective."
        )
    return example.messages[0]["content"], example.messages[1]["content"]


def label_set(problem_type: str, labels: Iterable[str], separator: str) -> LabelSet:
    """The labels that occur in rows, in order. Raises InvalidData if they make no classifier."""
    if problem_type == REGRESSION:
        for label in labels:
            value_of(label)
        return LabelSet(REGRESSION, (VALUE,))
    found: dict[str, int] = {}
    for label in labels:
        for name in [label.strip()] if problem_type == SINGLE else parts_of(label, separator):
            found[name] = found.get(name, 0) + 1
    _require_labels(found, problem_type)
    return LabelSet(problem_type, tuple(sorted(found, key=_order)))


def _require_labels(found: dict[str, int], problem_type: str) -> None:
    many = len(found) > 2 and max(found.values()) == 1
    long = next((name for name in found if len(name) > _LONGEST), "")
    if many or long or len(found) > _MOST_LABELS:
        shown = ", ".join(repr(name[:40]) for name in list(found)[:_SHOWN])
        raise InvalidData(
            f"The rows have {len(found):,} different answers ({shown}, …), so they are no labels: a label "
            "stands for several rows. Choose the column of the labels when the data is added, or another "
            "objective."
        )
    if len(found) < (2 if problem_type == SINGLE else 1):
        raise InvalidData(
            "All rows have the same label, so there is nothing to tell apart; at least two are needed."
            if found
            else "No row has a label."
        )


def _order(name: str) -> tuple[int, float, str]:
    """Numbers by their size, before words in the order of the alphabet."""
    try:
        return 0, float(int(name)), name
    except ValueError:
        return 1, 0.0, name


def parts_of(label: str, separator: str) -> list[str]:
    """The labels of a row that may have several: a list of texts or numbers, as JSON or as Python prints it,
    or texts with separators between. Raises InvalidData for a list of anything else.
    """
    listed = parsed(label.strip())
    if isinstance(listed, list):
        return [name for name in map(_name_of, listed) if name]
    return [one.strip() for one in label.split(separator) if one.strip()]


def _name_of(label: Any) -> str:
    if not isinstance(label, (str, int, float)):
        raise InvalidData(f"{str(label)[:80]!r} in a list of labels is no label; expected texts or numbers.")
    return label.strip() if isinstance(label, str) else json.dumps(label)


def value_of(label: str) -> float:
    """A label that is a number. Raises InvalidData."""
    try:
        value = float(label.strip())
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidData(
            f"The label {label.strip()[:80]!r} is no number; for regression each has to be one. Choose "
            "another problem type, or the column of the numbers when the data is added."
        )
    return value


def fitting(wanted: LabelSet, stored: LabelSet | None) -> LabelSet | None:
    """The labels of a head that a base's files hold, where it tells the same ones: by their names, or by
    their number where its configuration gives them no names.
    """
    if stored is None or len(stored) != len(wanted) or stored.problem_type != wanted.problem_type:
        return None
    if set(stored.names) == set(wanted.names):
        return stored
    return wanted if _is_nameless(stored.names) else None


def _is_nameless(names: Sequence[str]) -> bool:
    return list(names) == [f"LABEL_{place}" for place in range(len(names))]
