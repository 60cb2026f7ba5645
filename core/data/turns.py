"""Turns of a conversation: who speaks, and what makes a conversation one that can be trained on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.data.findings import RowFault
from core.data.formats import Example, Message, plain_turn
from core.data.reading import kind_of
from core.data.tool_calls import (
    Tool,
    about_calls,
    about_results,
    calls_in_text,
    read_calls,
    read_either,
    results_in_text,
    tools_in_text,
)
from core.data.turn_keys import (
    BESIDE,
    CALLS,
    REASONING,
    ROLE_KEYS,
    TEXT_KEYS,
    first_key,
    is_nothing,
    trained,
    unused_keys,
)

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
    "tool_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
}
_CALLERS = ("function_call", "tool_call")  # ShareGPT's roles whose text is a call
_TEXT_BLOCKS = ("text", "input_text", "output_text")
_THOUGHTS = ("thinking", "reasoning", "thought")  # blocks of what an answer thought before it


@dataclass(frozen=True)
class Turns:
    """Turns as they were read, the places of those that carry no loss, what was left aside, as (code,
    sentence), and the tools that a system turn described.
    """

    said: tuple[Message, ...]
    untrained: frozenset[int] = frozenset()
    notes: tuple[tuple[str, str], ...] = ()
    tools: tuple[Tool, ...] = ()


def as_list(value: Any) -> Any:
    """A list, also where a cell holds it as JSON or as Python prints it; anything else as it is."""
    if not isinstance(value, str) or not _LIST.match(value):
        return value
    return read_either(value)


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
    if not isinstance(value, dict) or not value.keys() & {*TEXT_KEYS, *CALLS}:
        return False
    role = value.get(first_key(value, ROLE_KEYS) or "")
    return isinstance(role, str) and role.strip().lower() in SPEAKERS


def read_turns(turns: Sequence[dict[str, Any]]) -> Turns:
    """All that a list of turns says. Raises RowFault."""
    said: list[Message] = []
    notes: list[tuple[str, str]] = []
    tools: list[Tool] = []
    silent: list[int] = []
    answers: list[bool] = []  # of all turns, as they were given
    hermes = _writes_calls_into_texts(turns)
    for at, turn in enumerate(turns):
        message = _message(turn, at + 1)
        role = message["role"]
        answers.append(role == "assistant")
        if len(turn) > 2:
            wanted = trained(turn, at + 1) if role == "assistant" else _flagged(turn)
            if wanted is False:
                silent.append(len(said))
            elif wanted and role != "assistant":
                notes.append(("only_answers", f"Turn {at + 1} is marked for training, and is the {role}'s."))
        if not hermes:
            said.append(message)
            continue
        if role == "system":
            found, own = tools_in_text(message["content"])
            tools += found
            said += [{**message, "content": own}] if own or not found else []
            continue
        taken = list(_from_texts(message))
        if note := _about_text(message, taken):
            notes.append(("call_text", f"Turn {at + 1}: {note}"))
        said += taken
    if tools:
        notes.append(
            ("tools_read", "What the system turn tells of the tools is written by the template instead.")
        )
    return Turns(tuple(said), frozenset(silent), (*notes, *unused_keys(turns, answers)), tuple(tools))


def _message(turn: dict[str, Any], number: int) -> Message:
    """One turn with all that is used of it. Raises RowFault."""
    if len(turn) == 2 and (plain := _plain(turn)) is not None:
        return plain
    role, calls = speaker(turn), _calls(turn, number)
    text, blocks = ("", "") if _is_call(turn) else _content(turn, silent=bool(calls))
    message: Message = {"role": role, "content": text}
    if blocks and role != "assistant":
        raise RowFault("missing", f"Turn {number} thinks in a block and is the {role}'s; only an answer can.")
    if role == "assistant" and (reasoning := _reasoning(turn, number) or blocks):
        message["reasoning"] = reasoning
    if calls and role != "assistant":
        raise RowFault("tool_call", f"Turn {number} calls a tool and is the {role}'s; only an answer can.")
    if calls:
        message["tool_calls"] = calls
    for key in ("name", "tool_call_id"):
        if isinstance(turn.get(key), str) and turn[key].strip():
            message[key] = turn[key]
    return message


def _plain(turn: Mapping[str, Any]) -> Message | None:
    """A turn of a known speaker that is nothing but text, as most are; None for any other."""
    role, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    known = SPEAKERS.get(role) if isinstance(role, str) and role not in _CALLERS else None
    return plain_turn(known, text) if known and isinstance(text, str) and text else None


def _is_call(turn: Mapping[str, Any]) -> bool:
    """Whether the turn's text is a call, as ShareGPT has it."""
    return str(turn.get(first_key(turn, ROLE_KEYS) or "")).strip().lower() in _CALLERS


def _calls(turn: dict[str, Any], number: int) -> list[dict[str, Any]]:
    if _is_call(turn):
        return read_calls(turn.get(first_key(turn, TEXT_KEYS) or ""), number)
    key = next((key for key in CALLS if not is_nothing(turn.get(key))), None)
    return read_calls(turn[key], number) if key else []


def _reasoning(turn: dict[str, Any], number: int) -> str:
    said = [turn[key] for key in REASONING if not is_nothing(turn.get(key))]
    if other := next((one for one in said if not isinstance(one, str)), None):
        raise RowFault("missing", f"The reasoning of turn {number} is {kind_of(other)}; expected text.")
    if len(set(said)) > 1:
        raise RowFault(
            "missing", f"Turn {number} has two different texts of reasoning; leave one of them out."
        )
    return said[0] if said else ""


def _writes_calls_into_texts(turns: Sequence[dict[str, Any]]) -> bool:
    """Whether answers call tools, or system turns define them, in their texts, as Hermes has it."""
    return any(map(_calls_or_defines_inside, turns))


def _calls_or_defines_inside(turn: dict[str, Any]) -> bool:
    text = turn.get("content") or turn.get("value") or turn.get("text")
    if not isinstance(text, str):
        return False
    if "<tool_call>" in text and "</tool_call>" in text and speaker(turn) == "assistant":
        return True
    return "</tools>" in text and speaker(turn) == "system" and bool(tools_in_text(text)[0])


def _about_text(message: Message, taken: Sequence[Message]) -> str:
    """What of a turn's text is not taken as Hermes has it; empty where all is."""
    if message["role"] == "assistant":
        return about_calls(message["content"], taken[0]["content"])
    return about_results(message["content"]) if message["role"] == "tool" else ""


def _from_texts(message: Message) -> Iterator[Message]:
    """A turn of Hermes: an answer's calls beside its text, a tool's results a turn each."""
    if message["role"] == "tool":
        yield from ({**message, "content": one} for one in results_in_text(message["content"]))
        return
    text, calls = (
        calls_in_text(message["content"]) if message["role"] == "assistant" else (message["content"], [])
    )
    yield {**message, "content": text} | ({"tool_calls": calls} if calls else {})


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


def _content(turn: dict[str, Any], *, silent: bool) -> tuple[str, str]:
    """A turn's text, a string or a list of blocks, and what was thought in blocks of their own.

    silent: whether it may say nothing, since it calls a tool. Raises RowFault.
    """
    key = first_key(turn, TEXT_KEYS)
    value = turn[key] if key else None
    if isinstance(value, list):
        thoughts = "".join(_thought(block) for block in value)
        return "".join(_block(block) for block in value if not _thought(block)), thoughts
    if silent and not value:
        return "", ""
    if speaker(turn) == "tool" and isinstance(value, dict):  # what a tool gave back, not as text yet
        return json.dumps(value, ensure_ascii=False), ""
    if not isinstance(value, str) or not value:
        kept = next((key for key in BESIDE if not is_nothing(turn.get(key))), None)
        if kept and not value:
            raise RowFault("missing", f"A turn holds {kept} and no text; that cannot be trained on.")
        if not isinstance(value, str):
            raise RowFault("missing", f"A turn's content is {kind_of(value)}; expected text.")
    return value, ""


def _thought(block: Any) -> str:
    """What a block of a turn thinks, as Anthropic and Mistral write it; empty for any other."""
    kind = block.get("type") if isinstance(block, dict) else None
    if kind not in _THOUGHTS:
        return ""
    found = block.get(first_key(block, (*_THOUGHTS, "text", "value", "content")) or "")
    if isinstance(found, list):
        return "".join(map(_block, found))
    return found if isinstance(found, str) else ""


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
        f"A turn holds something other than text ({str(kind)[:40]}); images, and tools in blocks, cannot be "
        "trained on.",
    )


def conversation(
    number: int,
    said: Sequence[Message | tuple[str, str]],
    untrained: frozenset[int] = frozenset(),
    label: str = "",
    notes: tuple[tuple[str, str], ...] = (),
    *,
    tools: Sequence[Tool] = (),
    template_kwargs: Mapping[str, Any] | None = None,
) -> Example:
    """Check that there is something to learn: an answer, not empty, and a user's turn before it.

    said: turns, as (role, text) where they are nothing but text. Notes are kept with the row. Raises
    RowFault.
    """
    turns = [turn if isinstance(turn, dict) else plain_turn(*turn) for turn in said]
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    if not answers:
        raise RowFault("no_answer", "There is no assistant turn, so nothing to train on.")
    if not all(turn["content"].strip() or turn.get("tool_calls") for turn in answers):
        raise RowFault("empty_answer", "An answer is empty.")
    first = next(turn["role"] for turn in turns if turn["role"] != "system")
    if first == "assistant":
        raise RowFault("no_question", "The first turn is the assistant's; a user's turn must come before it.")
    if all(at in untrained for at, turn in enumerate(turns) if turn["role"] == "assistant"):
        raise RowFault("untrained", "Every answer is marked as not trained, so nothing is trained on.")
    _require_calls_before_results(turns)
    return Example(
        number, tuple(turns), "", untrained, label, tuple(tools), dict(template_kwargs or {}), notes
    )


def _require_calls_before_results(turns: Sequence[Message]) -> None:
    """Raise RowFault where a tool that nobody called gives a result and others are called: then the row is
    cut or out of order.
    """
    if not any(turn.get("tool_calls") for turn in turns):
        return
    for at, turn in enumerate(turns):
        before = [one for one in turns[:at] if one["role"] != "tool"]
        if turn["role"] == "tool" and not (before and before[-1].get("tool_calls")):
            raise RowFault("tool_call", f"Turn {at + 1} is a tool's result, and the turn before calls none.")
