"""Turns of a conversation: who speaks, and what makes a conversation one that can be trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.data.findings import RowFault
from core.data.formats import Example
from core.data.python_repr import parsed_repr
from core.data.reading import kind_of
from core.data.turn_keys import BESIDE, ROLE_KEYS, TEXT_KEYS, first_key, is_nothing, trained, unused_keys

_LIST = re.compile(r"\s*(?:array\()?\[")

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
    "chatbot": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
}
_TEXT_BLOCKS = ("text", "input_text", "output_text")


@dataclass(frozen=True)
class Turns:
    """Turns as they were read: (role, text) each, the places of those that carry no loss, and what was left
    aside, as (code, sentence).
    """

    said: tuple[tuple[str, str], ...]
    untrained: frozenset[int] = frozenset()
    notes: tuple[tuple[str, str], ...] = ()


def as_list(value: Any) -> Any:
    """A list, also where a cell holds it as JSON or as Python prints it; anything else as it is."""
    if not isinstance(value, str) or not _LIST.match(value):
        return value
    for read in (json.loads, parsed_repr):
        try:
            return read(value)
        except (ValueError, RecursionError):
            continue
    return value


def as_turns(value: Any) -> list[dict[str, Any]] | None:
    """A list of turns, also where a cell of a table holds it as text."""
    value = as_list(value)
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return None
    return value


def are_turns(value: Any) -> bool:
    """Whether it is a list of nothing but turns: of speakers that are known, with something that is said."""
    return isinstance(value, list) and bool(value) and all(map(is_turn, value))


def is_turn(value: Any) -> bool:
    """Whether it is a turn: a known speaker's, with something that is said."""
    if not isinstance(value, dict) or not value.keys() & TEXT_KEYS:
        return False
    role = value.get(first_key(value, ROLE_KEYS) or "")
    return isinstance(role, str) and role.strip().lower() in SPEAKERS


def read_turns(turns: Sequence[dict[str, Any]]) -> Turns:
    """All that a list of turns says. Raises RowFault."""
    said, silent, notes = [], [], []
    for at, turn in enumerate(turns):
        role, text = speaker(turn), content(turn)
        said.append((role, text))
        if len(turn) > 2:
            wanted = trained(turn, at + 1) if role == "assistant" else _flagged(turn)
            if wanted is False:
                silent.append(at)
            elif wanted and role != "assistant":
                notes.append(("only_answers", f"Turn {at + 1} is marked for training, and is the {role}'s."))
    return Turns(tuple(said), frozenset(silent), (*notes, *unused_keys(turns)))


def _flagged(turn: dict[str, Any]) -> bool | None:
    """Whether a turn that is no answer is marked for training, if only in part."""
    try:
        return trained(turn, 0)
    except RowFault:
        return True


def speaker(turn: dict[str, Any]) -> str:
    """A turn's role, as chat templates call it. Raises RowFault."""
    role = turn.get(first_key(turn, ROLE_KEYS) or "")
    known = SPEAKERS.get(role.strip().lower()) if isinstance(role, str) else None
    if role is None:
        raise RowFault("unknown_role", "A turn has no role; use system, user, assistant or tool.")
    if known is None:
        shown = repr(role[:40]) if isinstance(role, str) else kind_of(role)
        raise RowFault("unknown_role", f"The role {shown} is not known; use system, user, assistant or tool.")
    return known


def content(turn: dict[str, Any]) -> str:
    """A turn's text: a string, or a list of blocks that are all text. Raises RowFault."""
    key = first_key(turn, TEXT_KEYS)
    value = turn[key] if key else None
    if isinstance(value, list):
        return "".join(map(_block, value))
    if not isinstance(value, str) or not value:
        calls = next((key for key in BESIDE if not is_nothing(turn.get(key))), None)
        if calls and not value:
            raise RowFault("missing", f"A turn holds {calls} and no text; that cannot be trained on yet.")
        if not isinstance(value, str):
            raise RowFault("missing", f"A turn's content is {kind_of(value)}; expected text.")
    return value


def _block(block: Any) -> str:
    """The text of one of a turn's blocks. Raises RowFault."""
    if isinstance(block, str):
        return block
    kind = block.get("type", "text") if isinstance(block, dict) else kind_of(block)
    text = (
        block.get(first_key(block, ("text", "value", "content")) or "") if isinstance(block, dict) else None
    )
    if kind in _TEXT_BLOCKS and isinstance(text, str):
        return text
    raise RowFault(
        "missing",
        f"A turn holds something other than text ({str(kind)[:40]}); images, tools and reasoning in blocks "
        "cannot be trained on.",
    )


def conversation(
    number: int,
    turns: Sequence[tuple[str, str]],
    untrained: frozenset[int] = frozenset(),
    label: str = "",
    notes: tuple[tuple[str, str], ...] = (),
) -> Example:
    """Check that there is something to learn: an answer, not empty, and a user's turn before it.

    turns are (role, text); notes are kept with the row. Raises RowFault.
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
        raise RowFault("untrained", "Every answer is marked as not trained, so nothing is trained on.")
    messages = tuple({"role": role, "content": said} for role, said in turns)
    return Example(number, messages, "", untrained, label, notes)
