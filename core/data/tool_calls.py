"""Tool definitions and tool calls: one form for what OpenAI, ShareGPT and Hermes spell differently. Needs no
torch.

A definition is {"type": "function", "function": {"name", "description", "parameters"}}, as OpenAI has it. A
call is {"name", "arguments": {…}}, with the "id" by which its result names it where there is one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from core.data.findings import RowFault
from core.data.python_repr import parsed_repr
from core.data.reading import kind_of

Tool = dict[str, Any]
Call = dict[str, Any]

_CALL = re.compile(r"\s*<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
_RESULT = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)
_TOOLS = re.compile(r"<tools>\s*(.*?)\s*</tools>", re.DOTALL)
# Sentences by which Hermes and Qwen introduce tools and say how to call them. Any other is the row's own.
_EXPLAINED = re.compile(
    r"(?:^#+ Tools[ \t]*$|"
    r"You are a function[- ]calling AI model\.?|"
    r"You are provided with function signatures within <tools>\s*</tools>[^.:\n]*[.:]?|"
    r"You may call one or more functions[^.\n]*\.|"
    r"Don't make assumptions about what values to plug into functions\.|"
    r"Here are the available tools\s*:|"
    r"Use the following pydantic model json schema for each tool call you will make\s*:\s*"
    r"\{.*?\}(?=\s*(?:For each function call|\n|\Z))|"
    r"For each function call,? return a json object(?:[^.:<\n]|<tool_call>\s*</tool_call>)*[.:]?"
    r"(?:\s*<tool_call>.*?</tool_call>)?"
    r")[ \t]*",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)


def parsed(value: Any) -> Any:
    """A value that a cell may hold as JSON or as Python prints it; a text that is neither stays as it is."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    return read_either(value)


def read_either(value: str) -> Any:
    """What a text holds as JSON or as Python prints it; the text itself if it is neither."""
    for read in (json.loads, parsed_repr):
        try:
            return read(value)
        except (ValueError, RecursionError):
            continue
    return value


def read_tools(value: Any) -> tuple[Tool, ...]:
    """The definitions in a column, a list or one of them. Raises RowFault."""
    found = parsed(value)
    listed = [found] if isinstance(found, dict) else found
    if not isinstance(listed, list):
        raise RowFault("tools", f"The tools are {kind_of(found)}; expected a list of definitions.")
    return tuple(_tool(parsed(one), number) for number, one in enumerate(listed, 1))


def _tool(one: Any, number: int) -> Tool:
    about = one.get("function", one) if isinstance(one, dict) else one
    if not isinstance(about, dict) or not isinstance(about.get("name"), str) or not about["name"].strip():
        raise RowFault(
            "tools", f"Tool {number} is {kind_of(one)} without a name; expected name and parameters."
        )
    given = {key: value for key, value in about.items() if value is not None and key != "type"}
    given.setdefault("description", "")
    given["parameters"] = parsed(given.get("parameters")) or {"type": "object", "properties": {}}
    return {"type": "function", "function": given}


def read_calls(value: Any, number: int) -> list[Call]:
    """The calls of turn `number`: a list or one of them, also as text. Raises RowFault."""
    found = parsed(value)
    listed = [found] if isinstance(found, dict) else found
    if not isinstance(listed, list) or not listed:
        said = repr(value[:60]) if isinstance(value, str) else kind_of(value)
        raise RowFault(
            "tool_call",
            f"Turn {number} calls a tool by {said}; expected an object with name and arguments, or a list "
            f"of them.",
        )
    return [_call(parsed(one), number) for one in listed]


def _call(one: Any, number: int) -> Call:
    about = parsed(one.get("function", one)) if isinstance(one, dict) else one
    if not isinstance(about, dict) or not isinstance(about.get("name"), str) or not about["name"].strip():
        raise RowFault("tool_call", f"A tool call of turn {number} has no name.")
    given = about.get("arguments", about.get("parameters"))
    arguments = parsed(given)
    if arguments is None or arguments == "":
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowFault(
            "tool_call",
            f"The arguments of {about['name'][:40]!r} in turn {number} are {kind_of(given)}; expected an "
            "object, or JSON that is one.",
        )
    known = {"name": about["name"], "arguments": arguments}
    return known | ({"id": str(one["id"])} if isinstance(one, dict) and one.get("id") else {})


# Hermes writes all of it into the texts.


def calls_in_text(text: str) -> tuple[str, list[Call]]:
    """An answer without the calls in <tool_call>…</tool_call>, and these; as it is where one is no call."""
    found = [parsed(match[1]) for match in _CALL.finditer(text)]
    if not found or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in found):
        return text, []
    try:
        return _CALL.sub("", text).strip(), read_calls(found, 0)
    except RowFault:
        return text, []


def about_calls(text: str, left: str) -> str:
    """What an answer's <tool_call>…</tool_call> are not taken as they stand; empty where they are, or none
    is there. left: what calls_in_text() leaves of it.
    """
    if "<tool_call>" not in text:
        return ""
    if left == text:
        return "what stands in <tool_call> is no JSON with a name, so that it stays text."
    _, *behind = _CALL.sub("\0", text).split("\0")
    return "its words behind a call are put before it." if any(map(str.strip, behind)) else ""


def results_in_text(text: str) -> list[str]:
    """What stands in each <tool_response>…</tool_response> of a tool's turn; the turn itself where it has
    none, or words beside them.
    """
    return [text] if about_results(text) else _RESULT.findall(text) or [text]


def about_results(text: str) -> str:
    """Why a tool's <tool_response>…</tool_response> are not taken out of its turn; empty where they are, or
    none is there.
    """
    is_beside = _RESULT.search(text) and _RESULT.sub("", text).strip()
    return "words stand beside its <tool_response>, so that all of it stays text." if is_beside else ""


def tools_in_text(text: str) -> tuple[tuple[Tool, ...], str]:
    """The definitions in <tools>…</tools> of a system turn, a list or one a line, and what it says beside
    them; none and all of it if it has none.
    """
    found = [_listed(match[1]) for match in _TOOLS.finditer(text)]
    try:
        tools = read_tools([one for listed in found for one in listed])
    except RowFault:
        tools = ()
    return (tools, _own_words(text)) if tools else ((), text)


def _own_words(text: str) -> str:
    """A system turn without its definitions, and without the sentences that explain how to call them."""
    without = _TOOLS.sub(lambda match: "\n\n" if _listed(match[1]) else match[0], text)
    beside = _EXPLAINED.sub("", without)
    kept = [part for one in re.split(r"\n\s*\n", beside) if (part := one.strip())]
    return "\n\n".join(kept)


def _listed(text: str) -> Sequence[Any]:
    whole = parsed(text)
    if isinstance(whole, list):
        return whole
    lines = [parsed(line.strip()) for line in text.splitlines() if line.strip()]
    return [whole] if isinstance(whole, dict) else [one for one in lines if isinstance(one, dict)]
