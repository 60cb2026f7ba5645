"""Which format a file has: every one that fits, with the columns it was seen by.

Nothing is guessed without a word.
"""

from __future__ import annotations

import difflib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.data.formats import as_turns
from core.data.mapping import ALPACA, LABELLED, LINES, LINKED, MESSAGES, PAIRS, SHAREGPT, TEXT, DataMapping
from core.data.read import PLAIN_SUFFIXES, BadRow, Row, RowReader
from core.errors import InvalidData

TURNS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "chat")
QUESTIONS = ("prompt", "instruction", "question", "query", "input", "inputs", "problem", "context")
ANSWERS = ("completion", "output", "answer", "response", "target", "targets", "solution")
LABELS = ("label", "category", "class", "label_text", "intent")
SYSTEMS = ("system", "system_prompt", "persona")
IDS, PARENTS = ("id", "message_id"), ("parent_id", "parent")
SEPARATORS = ("||", "\t", "=>", "###")
_KNOWN = (
    *TURNS,
    *QUESTIONS,
    *ANSWERS,
    *LABELS,
    *SYSTEMS,
    *IDS,
    *PARENTS,
    "text",
    "history",
    "chosen",
    "rejected",
    "content",
)
# Names that are worth a look when a column is almost one; short ones are almost anything.
_MISSPELLED = (
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "question",
    "answer",
    "response",
    "system",
    "history",
    "messages",
    "conversations",
    "text",
    "label",
    "category",
)
OPTIONAL = (*SYSTEMS, "input", "history")
_SAMPLE, _LOOKED_AT = 200, 5000  # sound rows to judge by, and rows to find them among
_SEPARATED_SHARE = 0.9
_LIKE = 0.8


@dataclass(frozen=True)
class Candidate:
    """A mapping that fits, and what it was seen by. A doubtful one is taken only when the user says so."""

    mapping: DataMapping
    reason: str
    doubtful: bool = False


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

    @property
    def chosen(self) -> Candidate | None:
        """The one that can be taken without asking."""
        if len(self.candidates) != 1 or self.candidates[0].doubtful or self.optional_missed:
            return None
        return self.candidates[0]

    def require(self, name: str) -> Candidate:
        """The one that can be taken without asking. Raises InvalidData with the choices there are."""
        if self.chosen is not None:
            return self.chosen
        found = ", ".join(map(repr, self.columns[:12])) or "none"
        hints = " ".join((*self.near_misses, *self.hints))
        if not self.candidates:
            raise InvalidData(
                f"{name}: no usable columns: found {found}. Expected messages; conversations; "
                "instruction and output; prompt and "
                "completion; question and answer; text and label; text. Or say which is which with a "
                f"mapping. {hints}".strip()
            )
        choices = "; ".join(
            f"{number}. {one.mapping.sentence()} ({one.reason})"
            for number, one in enumerate(self.candidates, 1)
        )
        raise InvalidData(
            f"{name}: choose what the columns {found} mean. {hints} Possible: {choices}. "
            "In a terminal: --map ROLE=COLUMN, --template or --separator.".replace("  ", " ")
        )


def detect_file(path: Path, name: str = "") -> Detection:
    """Look at the first rows of a file. Raises InvalidData if none of them can be read."""
    name = name or path.name
    plain = Path(name).suffix.lower() in PLAIN_SUFFIXES
    reader = RowReader(path, name=name, by_line=plain)
    sample, bad = [], []
    for number, row in itertools.islice(reader, _LOOKED_AT):
        bad.append(f"Row {number}: {row.detail}") if isinstance(row, BadRow) else sample.append(row)
        if len(sample) == _SAMPLE:
            break
    if not sample:
        raise InvalidData(
            f"{name} holds no rows." if not bad else f"{name}: none of its first rows can be read. {bad[0]}"
        )
    return detect_plain(sample) if plain else detect(sample)


def detect_plain(lines: Sequence[Row]) -> Detection:
    """A plain text: a document, or lines with a separator between question and answer."""
    text = Candidate(DataMapping(TEXT, {"text": "text"}), "a plain text; every token is trained on")
    found = []
    for separator in SEPARATORS:
        share = sum(line["text"].count(separator) == 1 for line in lines) / len(lines)
        if share >= _SEPARATED_SHARE and len(lines) > 1:
            mapping = DataMapping(LINES, {"text": "text"}, separator=separator)
            found.append(Candidate(mapping, f"{share:.0%} of the lines hold {separator!r} once"))
    return Detection((*found, text), ("text",))


def detect(sample: Sequence[Row]) -> Detection:
    """The formats that fit rows such as these."""
    seen = Counter(name for row in sample for name in row if name)
    columns = tuple(seen)
    # What stands in few rows is no format, but may be a part of one: a system prompt is often missing.
    names = {
        name.strip().lower(): name
        for name in columns
        if seen[name] * 2 >= len(sample) or name.strip().lower() in OPTIONAL
    }
    found = _candidates(names, sample)
    misses = _near_misses(names)
    if not found and misses:
        corrected = names | {right: column for column, right in misses.items()}
        found = [
            Candidate(one.mapping, f"{one.reason}, if misspelled columns are meant", True)
            for one in _candidates(corrected, sample)
        ]
    if (
        not found
        and len(columns) == 2
        and all(isinstance(row.get(column), str) for row in sample[:20] for column in columns)
    ):
        first, second = columns
        found = [
            Candidate(
                DataMapping(PAIRS, {"user": a, "assistant": b}),
                f"two columns: {a!r} asks, {b!r} answers",
                True,
            )
            for a, b in ((first, second), (second, first))
        ]
    hints = []
    if len(found) == 1:
        hints += unused_hint([column for column in columns if column not in found[0].mapping.used_columns()])
    if {"chosen", "rejected"} <= set(names):
        hints.append("Preferences (chosen / rejected) cannot be trained on yet; the chosen answers can.")
    near = tuple(
        f"The column {column!r} looks like a misspelled {right!r}." for column, right in misses.items()
    )
    optional = any(right in OPTIONAL for right in misses.values())
    return Detection(tuple(found), columns, tuple(hints), near, optional)


def _candidates(names: dict[str, str], sample: Sequence[Row]) -> list[Candidate]:
    found = [*_conversations(names, sample), *_preference(names), *_linked(names)]
    found += _pairs(names) if not _linked(names) else []
    if "text" in names and not _linked(names):
        found += _labelled(names) or [
            Candidate(DataMapping(TEXT, {"text": names["text"]}), "column 'text'; every token is trained on")
        ]
    return found


def _conversations(names: dict[str, str], sample: Sequence[Row]) -> list[Candidate]:
    found = []
    for column in (names[name] for name in TURNS if name in names):
        turns = next((turns for row in sample if (turns := as_turns(row.get(column)))), None)
        for form, keys in ((MESSAGES, ("role", "content")), (SHAREGPT, ("from", "value"))):
            if turns and set(keys) <= set(turns[0]):
                mapping = DataMapping(form, {"turns": column, **_system(names)})
                found.append(
                    Candidate(mapping, f"column {column!r} holds turns with {keys[0]} and {keys[1]}")
                )
    return found


def _preference(names: dict[str, str]) -> list[Candidate]:
    if not {"chosen", "rejected"} <= set(names):
        return []
    prompt = _first(names, QUESTIONS)
    mapping = DataMapping(PAIRS, {"user": prompt, "assistant": names["chosen"]}) if prompt else None
    return (
        [Candidate(mapping, "the chosen answers as plain answers; the rejected ones are not used", True)]
        if mapping
        else []
    )


def _linked(names: dict[str, str]) -> list[Candidate]:
    own, parent = _first(names, IDS), _first(names, PARENTS)
    if own is None or parent is None:
        return []
    role, content = names.get("role"), _first(names, ("text", "content", "value"))
    question, answer = _first(names, QUESTIONS), _first(names, ANSWERS)
    keys = {"id": own, "parent": parent}
    if role and content:
        return [
            Candidate(
                DataMapping(LINKED, keys | {"role": role, "content": content}),
                f"rows name their parent in {parent!r}",
            )
        ]
    if question and answer:
        return [
            Candidate(
                DataMapping(LINKED, keys | {"user": question, "assistant": answer}),
                f"rows name their parent in {parent!r}",
            )
        ]
    return []


def _pairs(names: dict[str, str]) -> list[Candidate]:
    """Alpaca, and question with answer under any of their names;
    several of one side are several candidates.
    """
    questions, answers = (
        [name for name in QUESTIONS if name in names],
        [name for name in ANSWERS if name in names],
    )
    if (
        {"instruction", "output"} <= set(names)
        and set(questions) <= {"instruction", "input"}
        and answers == ["output"]
    ):
        optional: dict[str, str] = {role: names[role] for role in ("input", "history") if role in names}
        mapping = DataMapping(
            ALPACA, {"user": names["instruction"], "assistant": names["output"], **optional, **_system(names)}
        )
        return [Candidate(mapping, "columns " + " and ".join(("instruction", "output")))]
    found = []
    for answer in (names[name] for name in answers):
        if len(questions) == 2:
            first, second = sorted(
                (names[name] for name in questions), key=lambda name: name.strip().lower() != "context"
            )
            made = {"user": f"{{{first}}}\n\n{{{second}}}"}
            mapping = DataMapping(PAIRS, {"assistant": answer, **_system(names)}, made)
            found.append(Candidate(mapping, f"{first!r} and {second!r} together ask, {answer!r} answers"))
        for question in (names[name] for name in questions):
            mapping = DataMapping(PAIRS, {"user": question, "assistant": answer, **_system(names)})
            found.append(Candidate(mapping, f"columns {question!r} and {answer!r}"))
    return found


def _labelled(names: dict[str, str]) -> list[Candidate]:
    label = _first(names, LABELS)
    if label is None:
        return []
    mapping = DataMapping(LABELLED, {"user": names["text"], "assistant": label, "label": label})
    return [Candidate(mapping, f"columns {names['text']!r} and {label!r}; the label is the answer")]


def _system(names: dict[str, str]) -> dict[str, str]:
    column = _first(names, SYSTEMS)
    return {"system": column} if column else {}


def _first(names: dict[str, str], wanted: Sequence[str]) -> str | None:
    return next((names[name] for name in wanted if name in names), None)


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


def _near_misses(names: dict[str, str]) -> dict[str, str]:
    """Columns of no known name that are almost one, by what they look like.

    One that is there already is not missed.
    """
    misses = {}
    for name, column in names.items():
        near = difflib.get_close_matches(name, _MISSPELLED, n=1, cutoff=_LIKE) if name not in _KNOWN else []
        if near and near[0] not in names:
            misses[column] = near[0]
    return misses
