"""From the columns people bring to conversations or plain text.

Each format is detected by its columns and turned into an Example. Nothing is guessed without a word: the detected
format is stored and shown, and columns that fit no format are an error that lists them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.read import Row, kind_of
from core.errors import InvalidData

Message = dict[str, str]
ROLES = {
    "system": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant",
}  # fmt: skip
QUESTION_NAMES = ("prompt", "instruction", "question", "query", "input", "problem", "context")
ANSWER_NAMES = ("completion", "output", "answer", "response", "target", "targets", "solution")
LABEL_NAMES = ("label", "category", "class")
SYSTEM_NAMES = ("system", "system_prompt", "persona")


@dataclass(frozen=True)
class Example:
    """One training row: either a conversation or plain text."""

    row: int
    messages: tuple[Message, ...] = ()
    text: str = ""


@dataclass(frozen=True)
class Format:
    """A detected format: its name, why it was chosen, and how a row becomes an Example."""

    name: str
    reason: str
    convert: Callable[[int, Row], Example]


def detect(columns: Sequence[str], first: Row) -> Format:
    """The format of rows with these columns. Raises InvalidData, listing the columns, if none fits."""
    names = {name.strip().lower(): name for name in columns if name}
    for attempt in (_preference, _messages, _sharegpt, _alpaca, _question_and_answer, _labelled, _plain_text):
        found = attempt(names, first)
        if found is not None:
            return found
    raise InvalidData(
        f"No usable columns: found {_listed(columns)}. Expected one of: messages; conversations; "
        "instruction and output; prompt and completion; question and answer; text and label; text."
    )


def _listed(columns: Sequence[str]) -> str:
    shown = [repr(str(column)[:40]) for column in columns[:12]]
    return ", ".join([*shown, *(["…"] if len(columns) > 12 else [])]) or "none"


def _preference(names: dict[str, str], first: Row) -> Format | None:
    if {"chosen", "rejected"} <= set(names):
        raise InvalidData(
            "This is preference data (chosen / rejected), which cannot be trained on yet; use prompt and completion."
        )
    return None


def _messages(names: dict[str, str], first: Row) -> Format | None:
    column = next((names[name] for name in ("messages", "conversation", "conversations") if name in names), None)
    turns = _turns(first.get(column)) if column else None
    if column is None or not turns or not {"role", "content"} <= set(turns[0]):
        return None
    return Format(
        "messages", f"column {column!r} holds turns with role and content",
        lambda number, row: _conversation(number, row, column, "role", "content", None),
    )  # fmt: skip


def _sharegpt(names: dict[str, str], first: Row) -> Format | None:
    column = next((names[name] for name in ("conversations", "conversation") if name in names), None)
    turns = _turns(first.get(column)) if column else None
    if column is None or not turns or not {"from", "value"} <= set(turns[0]):
        return None
    system = _first_of(names, SYSTEM_NAMES)
    return Format(
        "sharegpt", f"column {column!r} holds turns with from and value",
        lambda number, row: _conversation(number, row, column, "from", "value", system),
    )  # fmt: skip


def _alpaca(names: dict[str, str], first: Row) -> Format | None:
    if not {"instruction", "output"} <= set(names):
        return None
    system, extra = _first_of(names, SYSTEM_NAMES), names.get("input")

    def convert(number: int, row: Row) -> Example:
        question = _text(number, row, names["instruction"])
        if extra and row.get(extra):
            question = f"{question}\n{_text(number, row, extra)}"
        history = _history(number, row.get(names.get("history", "")))
        return _example(number, [*_system(number, row, system), *history,
                                 ("user", question), ("assistant", _text(number, row, names["output"]))])  # fmt: skip

    return Format("alpaca", "columns instruction and output", convert)


def _history(number: int, history: Any) -> list[tuple[str, str]]:
    pairs = history or []
    sound = isinstance(pairs, list) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs)
    if not sound or not all(isinstance(one, str) for pair in pairs for one in pair):
        raise InvalidData(f"Row {number}: history must be a list of [question, answer] pairs.")
    return [turn for asked, answered in pairs for turn in (("user", asked), ("assistant", answered))]


def _question_and_answer(names: dict[str, str], first: Row) -> Format | None:
    question, answer = _first_of(names, QUESTION_NAMES), _first_of(names, ANSWER_NAMES)
    if question is None or answer is None:
        return None
    system = _first_of(names, SYSTEM_NAMES)

    def convert(number: int, row: Row) -> Example:
        asked = _side(number, row, question, "user")
        answered = _side(number, row, answer, "assistant")
        return _example(number, [*_system(number, row, system), *asked, *answered])

    return Format("prompt and completion", f"columns {question!r} and {answer!r}", convert)


def _labelled(names: dict[str, str], first: Row) -> Format | None:
    label = _first_of(names, LABEL_NAMES)
    if "text" not in names or label is None:
        return None

    def convert(number: int, row: Row) -> Example:
        return _example(number, [("user", _text(number, row, names["text"])), ("assistant", _text(number, row, label))])

    return Format("text and label", f"columns 'text' and {label!r}; the label is the answer", convert)


def _plain_text(names: dict[str, str], first: Row) -> Format | None:
    if "text" not in names:
        return None

    def convert(number: int, row: Row) -> Example:
        text = _text(number, row, names["text"])
        if not text.strip():
            raise InvalidData(f"Row {number}: the text is empty.")
        return Example(number, text=text)

    return Format("text", "column 'text' alone; every token is trained on", convert)


def _first_of(names: dict[str, str], wanted: Sequence[str]) -> str | None:
    return next((names[name] for name in wanted if name in names), None)


def _turns(value: Any) -> list[dict[str, Any]] | None:
    """A list of turns, also where a CSV cell holds it as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return None
    return value


def _conversation(number: int, row: Row, column: str, role_key: str, text_key: str, system: str | None) -> Example:
    turns = _turns(row.get(column))
    if not turns:
        raise InvalidData(f"Row {number}: {column} must be a list of turns with {role_key} and {text_key}.")
    pairs = [(_role(number, turn.get(role_key)), _content(number, turn.get(text_key))) for turn in turns]
    return _example(number, [*_system(number, row, system), *pairs])


def _role(number: int, role: Any) -> str:
    known = ROLES.get(str(role).lower())
    if known is None:
        raise InvalidData(f"Row {number}: the role {str(role)[:40]!r} is not known; use system, user or assistant.")
    return known


def _content(number: int, value: Any) -> str:
    """A turn's text: a string, or a list of blocks of which only text is taken."""
    if isinstance(value, list):
        texts = [block.get("text") for block in value if isinstance(block, dict) and block.get("type") == "text"]
        blocks = [text for text in texts if isinstance(text, str)]
        if len(blocks) != len(value):
            raise InvalidData(f"Row {number}: a turn holds something other than text; images and tools cannot be trained on.")
        return "".join(blocks)
    if not isinstance(value, str):
        raise InvalidData(f"Row {number}: a turn's content is {kind_of(value)}; expected text.")
    return value


def _side(number: int, row: Row, column: str, role: str) -> list[tuple[str, str]]:
    """One side of prompt/completion: text, or a list of messages."""
    turns = _turns(row.get(column))
    if turns:
        return [(_role(number, turn.get("role")), _content(number, turn.get("content"))) for turn in turns]
    return [(role, _text(number, row, column))]


def _system(number: int, row: Row, column: str | None) -> list[tuple[str, str]]:
    return [("system", _text(number, row, column))] if column and row.get(column) else []


def _text(number: int, row: Row, column: str) -> str:
    value = row.get(column)
    missing = value is None or (isinstance(value, float) and not math.isfinite(value))
    if missing or isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InvalidData(f"Row {number}: {column} is {'missing' if missing else kind_of(value)}; expected text.")
    return str(value)


def _example(number: int, turns: Sequence[tuple[str, str]]) -> Example:
    """Check that there is something to learn: an answer, not empty, and a user's turn before it."""
    answers = [content for role, content in turns if role == "assistant"]
    if not answers:
        raise InvalidData(f"Row {number}: there is no assistant turn, so nothing to train on.")
    if not all(content.strip() for content in answers):
        raise InvalidData(f"Row {number}: an answer is empty.")
    if turns[0][0] == "assistant":
        raise InvalidData(f"Row {number}: the first turn is the assistant's; a user's turn must come before it.")
    return Example(number, tuple({"role": role, "content": content} for role, content in turns))
