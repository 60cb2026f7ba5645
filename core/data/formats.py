"""From a row of columns to an Example, as a mapping says. Needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from core.data.findings import RowFault
from core.data.mapping import (
    ALPACA,
    LABELLED,
    LINES,
    LINKED,
    MESSAGES,
    PAIRS,
    SHAREGPT,
    TEXT,
    DataMapping,
    fill,
    template_fields,
)
from core.data.read import Row, kind_of

Message = dict[str, str]
SPEAKERS = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
}


@dataclass(frozen=True)
class Example:
    """One training row: either a conversation or plain text."""

    row: int
    messages: tuple[Message, ...] = ()
    text: str = ""
    untrained: frozenset[int] = frozenset()
    """Places of assistant turns that carry no loss, as their weight says."""
    label: str = ""
    notes: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """(code, sentence) of what was left aside when the row was made; not stored with it."""


_BESIDE = (
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
)  # what may stand beside a turn's text
Convert = Callable[[int, Row], Example]
Turn = tuple[str, str]


def converter(mapping: DataMapping) -> Convert:
    """The function that makes an Example of a row; it raises RowFault.

    Linked rows have first to be put together.
    """
    return {
        MESSAGES: _turns_of,
        SHAREGPT: _turns_of,
        ALPACA: _alpaca,
        PAIRS: _pairs,
        LABELLED: _pairs,
        TEXT: _text_of,
        LINES: _lines,
        LINKED: _turns_of,
    }[mapping.format](mapping)


def _turns_of(mapping: DataMapping) -> Convert:
    column, system = mapping.columns.get("turns", "turns"), mapping.columns.get("system")

    def convert(number: int, row: Row) -> Example:
        turns = as_turns(row.get(column))
        if not turns:
            found = "an empty list" if row.get(column) == [] else kind_of(row.get(column))
            raise RowFault(
                "missing", f"{column} is {found}; expected a list of turns, each with a role and its text."
            )
        pairs = [(_speaker(turn), _content(turn)) for turn in turns]
        start = _system(mapping, row, system)
        silent = frozenset(len(start) + at for at, turn in enumerate(turns) if not _is_trained(turn))
        notes = tuple(
            ("ignored_part", f"The {key} of turn {at} are not used.")
            for at, turn in enumerate(turns, 1)
            for key in _BESIDE
            if turn.get(key)
        )
        made = conversation(number, [*start, *pairs], silent, _label(mapping, row))
        return replace(made, notes=notes) if notes else made

    return convert


def _alpaca(mapping: DataMapping) -> Convert:
    question, answer, extra = (
        mapping.columns["user"],
        mapping.columns["assistant"],
        mapping.columns.get("input"),
    )
    system, history = mapping.columns.get("system"), mapping.columns.get("history", "")

    def convert(number: int, row: Row) -> Example:
        asked = _text(row, question)
        if extra and row.get(extra) not in (None, ""):
            asked = f"{asked}\n{_text(row, extra)}"
        turns = [
            *_system(mapping, row, system),
            *_history(row.get(history)),
            ("user", asked),
            ("assistant", _text(row, answer)),
        ]
        return conversation(number, turns, label=_label(mapping, row))

    return convert


def _history(history: Any) -> list[Turn]:
    pairs = history or []
    sound = isinstance(pairs, list) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs
    )
    if not sound or not all(isinstance(one, str) for pair in pairs for one in pair):
        raise RowFault("missing", "history must be a list of [question, answer] pairs.")
    return [turn for asked, answered in pairs for turn in (("user", asked), ("assistant", answered))]


def _pairs(mapping: DataMapping) -> Convert:
    system = mapping.columns.get("system")

    def convert(number: int, row: Row) -> Example:
        turns = [
            *_system(mapping, row, system),
            *_side(mapping, row, "user"),
            *_side(mapping, row, "assistant"),
        ]
        return conversation(number, turns, label=_label(mapping, row))

    return convert


def _side(mapping: DataMapping, row: Row, role: str) -> list[Turn]:
    """One side of prompt and completion: a template filled in, a text, or a list of messages."""
    if role in mapping.templates:
        return [(role, _filled(mapping.templates[role], row))]
    column = mapping.columns[role]
    turns = as_turns(row.get(column)) if not isinstance(row.get(column), str) else None
    if turns:
        return [(_speaker(turn), _content(turn)) for turn in turns]
    return [(role, _text(row, column))]


def _filled(template: str, row: Row) -> str:
    return fill(template, {name: _text(row, name) for name in template_fields(template)})


def _text_of(mapping: DataMapping) -> Convert:
    column = mapping.columns["text"]

    def convert(number: int, row: Row) -> Example:
        text = _text(row, column)
        if not text.strip():
            raise RowFault("empty_answer", "The text is empty.")
        return Example(number, text=text, label=_label(mapping, row))

    return convert


def _lines(mapping: DataMapping) -> Convert:
    column, system = mapping.columns["text"], mapping.columns.get("system")

    def convert(number: int, row: Row) -> Example:
        asked, separator, answered = _text(row, column).partition(mapping.separator)
        if not separator:
            raise RowFault("missing", f"The separator {mapping.separator!r} is not in the line.")
        notes = (
            (("separator", f"The line holds {mapping.separator!r} more than once."),)
            if mapping.separator in answered
            else ()
        )
        asked, answered = asked.strip(), answered.strip()
        if "user" in mapping.templates:
            asked = fill(mapping.templates["user"], {column: asked})
        return replace(
            conversation(number, [*_system(mapping, row, system), ("user", asked), ("assistant", answered)]),
            notes=notes,
        )

    return convert


def as_turns(value: Any) -> list[dict[str, Any]] | None:
    """A list of turns, also where a CSV cell holds it as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return None
    return value


def _speaker(turn: dict[str, Any]) -> str:
    role = turn.get("role", turn.get("from"))
    known = SPEAKERS.get(role.lower()) if isinstance(role, str) else None
    if role is None:
        raise RowFault("unknown_role", "A turn has no role; use system, user, assistant or tool.")
    if known is None:
        shown = repr(role[:40]) if isinstance(role, str) else kind_of(role)
        raise RowFault("unknown_role", f"The role {shown} is not known; use system, user, assistant or tool.")
    return known


def _content(turn: dict[str, Any]) -> str:
    """A turn's text: a string, or a list of blocks of which only text is taken."""
    value = turn["content"] if "content" in turn else turn.get("value")
    if isinstance(value, list):
        texts = [
            block.get("text") for block in value if isinstance(block, dict) and block.get("type") == "text"
        ]
        blocks = [text for text in texts if isinstance(text, str)]
        if len(blocks) != len(value):
            raise RowFault(
                "missing", "A turn holds something other than text; images and tools cannot be trained on."
            )
        return "".join(blocks)
    if not isinstance(value, str):
        calls = next((key for key in _BESIDE if turn.get(key)), None)
        if calls and value is None:
            raise RowFault("missing", f"A turn holds {calls} and no text; that cannot be trained on yet.")
        raise RowFault("missing", f"A turn's content is {kind_of(value)}; expected text.")
    return value


def _is_trained(turn: dict[str, Any]) -> bool:
    """Whether a turn's weight or loss lets it carry loss."""
    value = turn.get("weight", turn.get("loss"))
    if not isinstance(value, (int, float, type(None))) or value not in (None, 0, 1):
        shown = f"{value:g}" if isinstance(value, (int, float)) else kind_of(value)
        raise RowFault("missing", f"A turn's weight is {shown}; expected the number 0 or 1.")
    return value != 0


def _system(mapping: DataMapping, row: Row, column: str | None) -> list[Turn]:
    if "system" in mapping.templates:
        return [("system", _filled(mapping.templates["system"], row))]
    return [("system", _text(row, column))] if column and row.get(column) not in (None, "") else []


def _label(mapping: DataMapping, row: Row) -> str:
    column = mapping.columns.get("label")
    value = row.get(column) if column else None
    return str(value)[:200] if isinstance(value, (str, int, float)) else ""


def _text(row: Row, column: str) -> str:
    value = row.get(column)
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise RowFault("missing", f"{column} is missing: {value} is no value; expected text.")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RowFault("missing", f"{column} is {kind_of(value)}; expected text.")
    return str(value)


def conversation(
    number: int, turns: Sequence[Turn], untrained: frozenset[int] = frozenset(), label: str = ""
) -> Example:
    """Check that there is something to learn: an answer, not empty, and a user's turn before it."""
    answers = [content for role, content in turns if role == "assistant"]
    if not answers:
        raise RowFault("no_answer", "There is no assistant turn, so nothing to train on.")
    if not all(content.strip() for content in answers):
        raise RowFault("empty_answer", "An answer is empty.")
    first = next(role for role, _ in turns if role != "system")
    if first == "assistant":
        raise RowFault("no_question", "The first turn is the assistant's; a user's turn must come before it.")
    if all(at in untrained for at, (role, _) in enumerate(turns) if role == "assistant"):
        raise RowFault("untrained", "Every answer has weight 0, so nothing is trained on.")
    return Example(
        number, tuple({"role": role, "content": content} for role, content in turns), "", untrained, label
    )
