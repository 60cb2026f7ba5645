"""Trees of messages, as OpenAssistant publishes them: each message holds the replies to it. Every way from
the root to a leaf becomes a conversation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from core.data.formats import Convert, DataFormat, Seen
from core.data.formats._columns import QUESTIONS, SYSTEMS
from core.data.formats._turns import turns_converter
from core.data.mapping import Candidate, DataMapping
from core.data.reading import BadRow, NumberedRows, Row, kind_of
from core.data.turn_keys import ROLE_KEYS, TEXT_KEYS
from core.data.turns import is_turn

_REPLIES = ("replies", "children")
_ROOTS = (*QUESTIONS, "root", "tree", "message")
# What a message says of itself and of its place in the tree.
_ABOUT = ("id", "message_id", "parent", "parent_id", "message_tree_id", "user_id", "created_date", "lang")


class MessageTree(DataFormat):
    """{"prompt": {"role": "prompter", "text": "…", "replies": [{"role": "assistant", …}, …]}}."""

    name, label, order = "message tree", "message tree", 65
    help = "messages that hold the replies to them; every way to a last reply becomes a conversation"
    said, expected = "message trees", "a message with its replies"
    roles = ("tree", "role", "content", "system")
    own_roles = (("tree", "Tree of messages, or replies"),)
    needed, optional = ("tree",), (*SYSTEMS, *_REPLIES)
    instead_of = ("linked rows", "messages", "prompt and completion", "text")

    def detect(self, seen: Seen) -> list[Candidate]:
        columns = _own_columns(seen)
        if columns:
            said = f"messages with the answers to them in {columns['tree']!r}"
            return [Candidate(DataMapping(self.name, columns), said)]
        roots = [
            seen.names[name] for name in _ROOTS if name in seen.names and _is_root(seen, seen.names[name])
        ]
        return [
            Candidate(DataMapping(self.name, {"tree": root}), f"{root!r} holds a message and its replies")
            for root in roots
        ]

    def gather(self, rows: NumberedRows, mapping: DataMapping) -> NumberedRows:
        for number, row in rows:
            if isinstance(row, BadRow):
                yield number, row
            else:
                yield from _ways(number, row, mapping)

    def converter(self, mapping: DataMapping) -> Convert:
        return turns_converter(mapping)


KIND = MessageTree()


def _own_columns(seen: Seen) -> dict[str, str]:
    """The columns of rows that are themselves messages with replies; none if they are not."""
    replies = seen.first(_REPLIES)
    role, content = seen.first(ROLE_KEYS), seen.first(TEXT_KEYS)
    if not replies or not role or not content:
        return {}
    if not any(isinstance(row.get(replies), list) and any(map(is_turn, row[replies])) for row in seen.rows):
        return {}
    return {"tree": replies, "role": role, "content": content}


def _is_root(seen: Seen, column: str) -> bool:
    values = [row[column] for row in seen.rows if row.get(column) is not None]
    return bool(values) and all(is_turn(value) and _replies(value) is not None for value in values)


def _replies(message: dict[str, Any]) -> list[Any] | None:
    return next((message[key] for key in _REPLIES if isinstance(message.get(key), list)), None)


def _ways(number: int, row: Row, mapping: DataMapping) -> NumberedRows:
    """{"turns": [...]} for each way from the root to a message without replies."""
    column = mapping.columns["tree"]
    root = row if "role" in mapping.columns else row.get(column)
    if not isinstance(root, dict):
        yield number, BadRow("missing", f"{column} is {kind_of(root)}; expected a message with its replies.")
        return
    system = mapping.columns.get("system")
    beside = {system: row[system]} if system and row.get(system) else {}
    for way in _leaves(root):
        yield number, {"turns": [_turn(message) for message in way], **beside}


def _leaves(root: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    waiting: list[tuple[Any, ...]] = [(root,)]
    while waiting:
        way = waiting.pop()
        replies = (_replies(way[-1]) or []) if isinstance(way[-1], dict) else []
        if not replies:
            yield way
        waiting += [(*way, reply) for reply in reversed(replies)]


def _turn(message: Any) -> Any:
    """A message without its replies and what it says of its place; what is none stays, and is refused."""
    if not isinstance(message, dict):
        return message
    return {key: value for key, value in message.items() if key not in (*_REPLIES, *_ABOUT)}
