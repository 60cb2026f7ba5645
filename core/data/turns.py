"""Turns of a conversation: who speaks, and what makes a conversation one that can be trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from core.data.findings import RowFault
from core.data.formats import Example
from core.data.reading import kind_of

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
# What may stand beside a turn's text.
BESIDE = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


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


def speaker(turn: dict[str, Any]) -> str:
    """A turn's role, as chat templates call it. Raises RowFault."""
    role = turn.get("role", turn.get("from"))
    known = SPEAKERS.get(role.lower()) if isinstance(role, str) else None
    if role is None:
        raise RowFault("unknown_role", "A turn has no role; use system, user, assistant or tool.")
    if known is None:
        shown = repr(role[:40]) if isinstance(role, str) else kind_of(role)
        raise RowFault("unknown_role", f"The role {shown} is not known; use system, user, assistant or tool.")
    return known


def content(turn: dict[str, Any]) -> str:
    """A turn's text: a string, or a list of blocks of which only text is taken. Raises RowFault."""
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
        calls = next((key for key in BESIDE if turn.get(key)), None)
        if calls and value is None:
            raise RowFault("missing", f"A turn holds {calls} and no text; that cannot be trained on yet.")
        raise RowFault("missing", f"A turn's content is {kind_of(value)}; expected text.")
    return value


def is_trained(turn: dict[str, Any]) -> bool:
    """Whether a turn's weight or loss lets it carry loss. Raises RowFault."""
    value = turn.get("weight", turn.get("loss"))
    if not isinstance(value, (int, float, type(None))) or value not in (None, 0, 1):
        shown = f"{value:g}" if isinstance(value, (int, float)) else kind_of(value)
        raise RowFault("missing", f"A turn's weight is {shown}; expected the number 0 or 1.")
    return value != 0


def conversation(
    number: int, turns: Sequence[tuple[str, str]], untrained: frozenset[int] = frozenset(), label: str = ""
) -> Example:
    """Check that there is something to learn: an answer, not empty, and a user's turn before it.

    turns are (role, text). Raises RowFault.
    """
    answers = [said for role, said in turns if role == "assistant"]
    if not answers:
        raise RowFault("no_answer", "There is no assistant turn, so nothing to train on.")
    if not all(said.strip() for said in answers):
        raise RowFault("empty_answer", "An answer is empty.")
    first = next(role for role, _ in turns if role != "system")
    if first == "assistant":
        raise RowFault("no_question", "The first turn is the assistant's; a user's turn must come before it.")
    if all(at in untrained for at, (role, _) in enumerate(turns) if role == "assistant"):
        raise RowFault("untrained", "Every answer has weight 0, so nothing is trained on.")
    return Example(
        number, tuple({"role": role, "content": said} for role, said in turns), "", untrained, label
    )
