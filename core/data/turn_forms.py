"""How a chat template wants what stands beside a turn's text: reasoning in a field or in the text, arguments
of a tool call as an object or as JSON, and the like. Each is found by trying it on a conversation of our own.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from core.data.formats import Message
from core.data.templating import Conversation
from core.data.tool_calls import Call, Tool
from core.errors import InvalidData

_REASONING = ("reasoning_content", "reasoning", "thinking")  # what templates call it; each is given
_THOUGHT = re.compile(r"\A(?:\s*<think>)?(?P<thought>(?:(?!<think>).)*?)</think>(?P<rest>.*)\Z", re.DOTALL)
_UNFINISHED = re.compile(r"<[^<>\s]{0,30}\Z")
_ID = "call{:05}"  # nine letters and digits, as Mistral's templates demand

Render = Callable[[Sequence[Conversation]], list[str | InvalidData]]
"""Conversations as texts; in place of one that the template cannot render the reason."""


@dataclass(frozen=True)
class TurnForm:
    """The form in which a template takes what is not plain text."""

    reasoning_inside: bool = False
    """Reasoning stands in the text, between <think> and </think>, since the template knows no field for it.
    """
    arguments_as_json: bool = False
    silent_as_none: bool = False
    """The content of an answer that only calls is None rather than empty."""
    bare_tools: bool = False
    """Definitions without {"type": "function", "function": …} around them."""
    around_thought: tuple[str, str] = ("", "")
    """What the template puts around reasoning, where that was seen."""

    def tools(self, tools: Sequence[Tool]) -> list[Tool]:
        """Definitions as the template takes them."""
        return [one["function"] for one in tools] if self.bare_tools else list(tools)

    def turns(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Turns as the template takes them."""
        names = _called_names(messages)
        return [self._turn(message, names.get(at)) for at, message in enumerate(messages)]

    def _turn(self, message: Message, called: tuple[str, str] | None) -> dict[str, Any]:
        found: dict[str, Any] = {key: message[key] for key in ("role", "content", "name") if key in message}
        if message["role"] == "assistant":
            thought, text = parted(message)
            found |= self._thinking(message, thought, text)
        if message.get("tool_calls"):
            calls = enumerate(message["tool_calls"])
            found["tool_calls"] = [self._call(one, _id_of(called, number)) for number, one in calls]
            if not found["content"] and self.silent_as_none:
                found["content"] = None
        if message["role"] == "tool" and called is not None:
            found |= {"tool_call_id": called[0]} | ({"name": called[1]} if called[1] else {})
        return found

    def _thinking(self, message: Message, thought: str, text: str) -> dict[str, Any]:
        if not self.reasoning_inside:
            return {"content": text} | (dict.fromkeys(_REASONING, thought) if thought else {})
        begun = thought and not str(message["content"]).lstrip().startswith(
            "<think>"
        )  # by the prompt, in a chat
        return {"content": f"<think>\n{thought.strip()}\n</think>\n\n{text}"} if begun else {}

    def _call(self, call: Call, name: str) -> dict[str, Any]:
        arguments = call["arguments"]
        given = json.dumps(arguments, ensure_ascii=False) if self.arguments_as_json else arguments
        return {"id": name, "type": "function", "function": {"name": call["name"], "arguments": given}}


def parted(message: Message) -> tuple[str, str]:
    """What an answer thinks, and what it says: from its own field, or as it stands in the text."""
    text = str(message["content"])
    if reasoning := message.get("reasoning"):
        return str(reasoning), text
    if "</think>" not in text or (found := _THOUGHT.match(text)) is None:
        return "", text
    return found["thought"].strip(), found["rest"].lstrip("\n")


def _called_names(messages: Sequence[Message]) -> dict[int, tuple[str, str]]:
    """By place: of an answer the number of its first call, of a tool's result the id and the name of its
    call.
    """
    found: dict[int, tuple[str, str]] = {}
    waiting: list[tuple[str, str, str]] = []  # id in the row, id for the template, name
    count = 0
    for at, message in enumerate(messages):
        if calls := message.get("tool_calls"):
            found[at] = (str(count), "")
            waiting = [
                (str(one.get("id", "")), _ID.format(count + number), one["name"])
                for number, one in enumerate(calls)
            ]
            count += len(calls)
        elif message["role"] == "tool":
            found[at] = _answered(message, waiting)
    return found


def _answered(message: Message, waiting: list[tuple[str, str, str]]) -> tuple[str, str]:
    """The call that a result belongs to, which waits no longer: that of its id, of its name, or the next."""
    wanted, name = message.get("tool_call_id"), message.get("name")
    fitting = [one for one in waiting if wanted and one[0] == wanted] or [
        one for one in waiting if name and one[2] == name
    ]
    chosen = next(iter(fitting or waiting), None)
    if chosen is None:
        return _ID.format(0), str(name or "")
    waiting.remove(chosen)
    return chosen[1], str(name or chosen[2])


def _id_of(called: tuple[str, str] | None, number: int) -> str:
    return _ID.format(int(called[0] if called else 0) + number)


# Trying.

_QUESTION = {"role": "user", "content": "Which town is it?"}
_THINKING: Message = {"role": "assistant", "content": "It is Zwolle.", "reasoning": "Qoph then resh."}
_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": "find_town",
        "description": "Finds a town.",
        "parameters": {
            "type": "object",
            "properties": {"letters": {"type": "string", "description": "Some letters."}},
            "required": ["letters"],
        },
    },
}
_CALLING: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"name": "find_town", "arguments": {"letters": "Zürich's"}}],
}
_RESULT: Message = {"role": "tool", "content": "Zwolle"}
CALL_EXCHANGE: tuple[Message, ...] = (_QUESTION, _CALLING)
TOOLS: tuple[Tool, ...] = (_TOOL,)


def found_form(render: Render, beside: Mapping[str, Any]) -> TurnForm:
    """The form that a template takes; where it takes none, the usual one."""
    return _with_reasoning(render, _with_tools(render, beside), beside)


def _with_tools(render: Render, beside: Mapping[str, Any]) -> TurnForm:
    """The first form in which the template writes definitions and calls; else one in which it writes the
    calls.
    """
    choices = itertools.product((False, True), repeat=3)
    forms = [TurnForm(False, as_json, as_none, bare) for bare, as_none, as_json in choices]
    for tools in (TOOLS, ()):
        for form in forms:
            if _takes_tools(render, form, tools, beside):
                return form
    return TurnForm()


def _with_reasoning(render: Render, form: TurnForm, beside: Mapping[str, Any]) -> TurnForm:
    """Reasoning goes into its field where the template writes it from there, behind a text or before a call;
    else into the text, if it is kept there.
    """
    for thinking, tools in ((_THINKING, ()), ({**_CALLING, "reasoning": _THINKING["reasoning"]}, TOOLS)):
        if (around := _around_thought(render, form, thinking, tools, beside)) is not None:
            return replace(form, around_thought=around)
    inside = replace(form, reasoning_inside=True)
    text = render([Conversation(inside.turns([_QUESTION, _THINKING]), False, (), beside)])[0]
    return inside if isinstance(text, str) and _THINKING["reasoning"] in text else form


def _around_thought(
    render: Render, form: TurnForm, thinking: Message, tools: Sequence[Tool], beside: Mapping[str, Any]
) -> tuple[str, str] | None:
    """What the template puts before and behind the reasoning of an answer; None where it leaves it out."""
    silent = {key: value for key, value in thinking.items() if key != "reasoning"}
    given = form.tools(tools), beside
    before, without, until = render(
        [
            Conversation(form.turns([_QUESTION]), True, *given),
            Conversation(form.turns([_QUESTION, silent]), False, *given),
            Conversation(form.turns([_QUESTION, thinking]), False, *given),
        ]
    )
    if isinstance(before, InvalidData) or isinstance(without, InvalidData) or isinstance(until, InvalidData):
        return None
    head, found, tail = until.partition(thinking["reasoning"])
    if not found:
        return None
    openings = (head[len(shared_start(other, head)) :] for other in (before, without))
    opening = max(openings, key=len) or _last_tag(head)
    rest = _alike(tail[::-1], without[::-1])
    closing = (
        tail[: len(tail) - rest] if thinking.get("tool_calls") else tail.partition(thinking["content"])[0]
    )
    return opening, closing


def shared_start(one: str, other: str) -> str:
    """What two texts begin with, without a tag of which they share the beginning only."""
    return _UNFINISHED.sub("", one[: _alike(one, other)])


def _alike(one: str, other: str) -> int:
    """How many characters two texts begin with in common."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _last_tag(prompt: str) -> str:
    """The tag that a text ends with, with the white space behind it."""
    found = re.search(r"<[^<>\s]+>\s*\Z", prompt)
    return found[0] if found else ""


def _takes_tools(render: Render, form: TurnForm, tools: Sequence[Tool], beside: Mapping[str, Any]) -> bool:
    """Whether definitions, a call and its result stand in what the template makes of them, none of them as
    Python prints it or as JSON within JSON.
    """
    turns = form.turns([_QUESTION, _CALLING, _RESULT])
    given = form.tools(tools), beside
    bare, called, answered = render(
        [
            Conversation(turns[:1], True, *given),
            Conversation(turns[:2], False, *given),
            Conversation(turns, True, *given),
        ]
    )
    if isinstance(bare, InvalidData) or isinstance(called, InvalidData) or isinstance(answered, InvalidData):
        return False
    told = stands_tools(bare, tools) is None
    said = called[len(bare) :] if called.startswith(bare) else called
    wrong = "{'letters'" in said or '\\"letters' in said or "{'type'" in bare
    result = answered.rsplit("find_town", 1)[-1] if answered.startswith(called.rstrip()[:40]) else answered
    return told and not wrong and stands_calls(said, _CALLING["tool_calls"]) is None and "Zwolle" in result


# Whether all of it stands in a text.


def stands_tools(text: str, tools: Sequence[Tool]) -> str | None:
    """The first name of a tool or of one of its parameters that does not stand in the text."""
    return next((name for tool in tools for name in _names_of(tool) if name not in text), None)


def _names_of(tool: Tool) -> Iterator[str]:
    about = tool["function"]
    yield about["name"]
    parameters = about.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    yield from map(str, properties if isinstance(properties, dict) else ())


def stands_calls(text: str, calls: Sequence[Call]) -> str | None:
    """The first name, or the first key or value of an argument, that does not stand in the text."""
    squeezed = _squeezed(text)
    for call in calls:
        for one in (call["name"], *_leaves(call["arguments"])):
            if not any(_squeezed(written) in squeezed for written in _spellings(one)):
                return str(one)
    return None


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield str(key)
            yield from _leaves(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _spellings(value: Any) -> Iterable[str]:
    """A value as templates may write it."""
    if isinstance(value, str):
        plain = json.dumps(value, ensure_ascii=False)[1:-1]
        ascii_only, quoted = json.dumps(value)[1:-1], repr(value)[1:-1]
        return (value, plain, ascii_only, quoted, *map(_html, (value, plain)))
    return (json.dumps(value), str(value))


def _html(text: str) -> str:
    """As Jinja's own tojson writes characters that mean something in HTML."""
    for sign, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("'", "\\u0027")):
        text = text.replace(sign, code)
    return text


def _squeezed(text: str) -> str:
    return "".join(text.split())
