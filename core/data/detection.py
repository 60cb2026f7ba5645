"""Which format a file has: every one that fits, with the columns it was seen by.

Nothing is guessed without a word.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from core.data.formats import DATA_FORMATS, Seen
from core.data.formats._columns import KNOWN, MISSPELLED
from core.data.left_out import left_out_hint, text_left_out
from core.data.mapping import Candidate
from core.data.preferences import chosen_alone, preferences_hint, preferences_in
from core.data.reading import Row
from core.data.sample import Sample, sample_of
from core.errors import InvalidData

_LIKE = 0.8
_IDS = "input_ids"
_OF_IDS = (
    f"{_IDS!r} holds the tokens of some base, which no other understands; give the text they were made of."
)


@dataclass(frozen=True)
class Detection:
    """What a file was found to be. `hints` are for people: misspelled columns, columns that are not used."""

    candidates: tuple[Candidate, ...]
    columns: tuple[str, ...]
    hints: tuple[str, ...] = ()
    near_misses: tuple[str, ...] = ()
    optional_missed: bool = False
    """Whether a part that the format would take may be misspelled, so that it would be left aside without a
    word.
    """
    preferences: str = ""
    """What a person is told of rows that are preferences; empty if they are none."""
    left_out: tuple[str, ...] = ()
    """Columns of text that the reading would leave out."""

    @property
    def chosen(self) -> Candidate | None:
        """The one that can be taken without asking."""
        if len(self.candidates) != 1 or self.candidates[0].doubtful or self.optional_missed:
            return None
        if self.preferences or self.left_out:
            return None
        return self.candidates[0]

    def require(self, name: str) -> Candidate:
        """The one that can be taken without asking. Raises InvalidData with the choices there are."""
        if self.chosen is not None:
            return self.chosen
        found = ", ".join(map(repr, self.columns[:12])) or "none"
        hints = " ".join((*self.near_misses, *self.hints))
        if self.preferences and not self.candidates:
            raise InvalidData(f"{name}: {hints}")
        if not self.candidates:
            expected = [form.expected for form in DATA_FORMATS.all().values() if form.expected]
            said = hints or f"Expected {'; '.join(expected)}. Or say which is which with a mapping."
            raise InvalidData(f"{name}: no usable columns: found {found}. {said}")
        choices = "; ".join(
            f"{number}. {one.mapping.sentence()} ({one.reason})"
            for number, one in enumerate(self.candidates, 1)
        )
        raise InvalidData(
            f"{name}: choose what the columns {found} mean. {hints} Possible: {choices}. "
            "In a terminal: --map ROLE=COLUMN, --template or --separator.".replace("  ", " ")
        )


def detect_file(path: Path, name: str = "") -> Detection:
    """What the first rows of a file are. Raises InvalidData if none of them can be read."""
    return detect(sample_of(path, name))


def detect(sample: Sample) -> Detection:
    """The formats that fit rows such as these."""
    return _in_plain_text(sample.good) if sample.plain else _in_rows(sample.good)


def _in_plain_text(rows: Sequence[Row]) -> Detection:
    lines = [row["text"] for row in rows]
    found = [one for form in DATA_FORMATS.all().values() for one in form.detect_lines(lines)]
    json_like = _are_json(lines) or _begins_as_json(lines)
    hints = ("Its lines are JSON; call the file .jsonl, to have it read as rows.",) if json_like else ()
    found = [replace(one, doubtful=one.doubtful or json_like) for one in found]
    return Detection(tuple(found), ("text",), hints)


def _are_json(lines: Sequence[str]) -> bool:
    """Whether every line is a JSON object or list, as of a file of rows."""
    return all(line.strip()[:1] in ("{", "[") and _is_json(line) for line in lines)


def _begins_as_json(lines: Sequence[str]) -> bool:
    """Whether the text is a JSON object over several lines, or begins as a list of objects."""
    text = "\n".join(lines).strip()
    if not re.match(r"\[\s*\{", text):
        return text[:1] == "{" and _is_json(text)
    try:
        return isinstance(json.JSONDecoder().raw_decode(text, text.index("{"))[0], dict)
    except (ValueError, RecursionError):
        return False


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), (dict, list))
    except (ValueError, RecursionError):
        return False


def _in_rows(rows: Sequence[Row]) -> Detection:
    seen = _seen(rows)
    found, misses = _candidates(seen), {} if _IDS in seen.names else _near_misses(seen.names)
    if not found and misses:
        corrected = dict(seen.names) | {right: column for column, right in misses.items()}
        found = [
            Candidate(one.mapping, f"{one.reason}, if misspelled columns are meant", True)
            for one in _candidates(replace(seen, names=corrected))
        ]
    everything = replace(seen, names={name.strip().lower(): name for name in seen.columns})
    if why := preferences_in(everything, found):
        return _of_preferences(everything, why)
    left_out = text_left_out(seen, found[0]) if len(found) == 1 else ()
    hints = [left_out_hint(left_out)] if left_out else []
    if not found or left_out:
        found += _guesses(seen, found, left_out)
    hints += [_OF_IDS] if _IDS in seen.names and not found else []
    hints += _unused(seen, found, left_out) + [
        hint for form in DATA_FORMATS.all().values() for hint in form.hints(seen)
    ]
    near = tuple(
        f"The column {column!r} looks like a misspelled {right!r}." for column, right in misses.items()
    )
    optional = any(right in optional_columns() for right in misses.values())
    return Detection(tuple(found), seen.columns, tuple(hints), near, optional, left_out=left_out)


def _of_preferences(seen: Seen, why: str) -> Detection:
    offered = chosen_alone(seen)
    said = preferences_hint(why, offered=bool(offered))
    return Detection(tuple(offered), seen.columns, (said,), preferences=said)


def _guesses(seen: Seen, found: Sequence[Candidate], left_out: Sequence[str]) -> list[Candidate]:
    """Doubtful readings: of all columns where nothing fits, else of those used and those left out."""
    if found:
        used = sorted(found[0].mapping.used_columns())
        seen = replace(seen, columns=(*left_out, *used))
    return [one for form in DATA_FORMATS.all().values() for one in form.guess(seen)]


def _unused(seen: Seen, found: Sequence[Candidate], said: Sequence[str]) -> list[str]:
    if len(found) != 1:
        return []
    used = found[0].mapping.used_columns()
    return unused_hint([column for column in seen.columns if column not in used and column not in said])


def _seen(rows: Sequence[Row]) -> Seen:
    """What stands in few rows is no format, but may be a part of one: a system prompt is often missing."""
    counts = Counter(name for row in rows for name in row if name)
    optional = optional_columns()
    names = {
        low: name
        for name, count in counts.items()
        if (low := name.strip().lower()) in optional or count * 2 >= len(rows)
    }
    return Seen(tuple(counts), names, rows)


def optional_columns() -> frozenset[str]:
    """Columns that some format takes where they are there."""
    return frozenset(name for form in DATA_FORMATS.all().values() for name in form.optional)


def _candidates(seen: Seen) -> list[Candidate]:
    """What each format makes of the rows, but for formats that another one stands for."""
    found = [one for form in DATA_FORMATS.all().values() for one in form.detect(seen)]
    covered = {name for one in found if not one.doubtful for name in one.mapping.data_format.instead_of}
    return [one for one in found if one.doubtful or one.mapping.format not in covered]


def unused_hint(columns: Sequence[str]) -> list[str]:
    """That these columns are left aside; nothing if there are none."""
    return (
        [
            (
                "Columns that are not used: "
                f"{', '.join(map(repr, columns[:12]))}{' …' if len(columns) > 12 else ''}."
            )
        ]
        if columns
        else []
    )


def _near_misses(names: Mapping[str, str]) -> dict[str, str]:
    """Columns of no known name that are almost one, by what they look like.

    One that is there already is not missed.
    """
    own = [name for form in DATA_FORMATS.all().values() for name in form.columns]
    misses = {}
    for name, column in names.items():
        unknown = name not in KNOWN and name not in own
        near = difflib.get_close_matches(name, [*MISSPELLED, *own], n=1, cutoff=_LIKE) if unknown else []
        if near and near[0] not in names:
            misses[column] = near[0]
    return misses
