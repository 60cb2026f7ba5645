"""Tool calls in what a model has written: from an answer's text to the calls in it. Needs no torch.

What decoding leaves of the special tokens is read, in the forms that chat templates teach: JSON between
<tool_call> and </tool_call> (Hermes, Qwen), <function=…><parameter=…> in it (Qwen3-Coder), <arg_key> and
<arg_value> in it (GLM), and an answer that is JSON alone, or a name before it (Llama, Mistral). A call counts
only if its tool was offered; else, and in any other form, the answer stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from core.data.findings import RowFault
from core.data.tool_calls import Call, Tool, read_calls

BEGINNING = "<tool_call>"
_TAGGED = re.compile(rf"{BEGINNING}(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^>\s]+)>(.*?)(?:</function>)?\s*\Z", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_KEYED = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
_NAMED = re.compile(r"\s*([^\s{}\[\]<>]+)\s*(\{.*\})\s*\Z", re.DOTALL)
_LISTED = re.compile(r"\s*(?:\[TOOL_CALLS\])?\s*")
_THOUGHT_ENDS = "</think>"


def calls_in_answer(text: str, tools: Sequence[Tool]) -> tuple[str, list[Call]]:
    """An answer without its calls, and these; as it is where it holds none, or one that is not understood.

    tools: those that were offered, as core/data/tool_calls.py has definitions.
    """
    schemas = {one["function"]["name"]: _types(one) for one in tools}
    thought, ends, said = text.rpartition(_THOUGHT_ENDS)
    if BEGINNING in said:
        found = [_in_tags(one[1], schemas) for one in _TAGGED.finditer(said)]
        rest = _TAGGED.sub("", said)
    else:
        found, rest = [_alone(said, schemas)], ""
    if not all(found):
        return text, []
    return (thought + ends + rest).strip(), [call for calls in found for call in calls]


def may_begin_call(text: str, tools: Sequence[Tool]) -> bool:
    """Whether an answer that begins so may be nothing but a call."""
    said = _LISTED.sub("", text, count=1)
    names = [one["function"]["name"] for one in tools]
    return not said or any(said.startswith(one) or one.startswith(said) for one in ("{", "[", *names))


def _types(tool: Tool) -> Mapping[str, Any]:
    """The schema of each parameter."""
    parameters = tool["function"]["parameters"]
    found = parameters.get("properties") if isinstance(parameters, dict) else None
    return found if isinstance(found, dict) else {}


def _in_tags(text: str, schemas: Mapping[str, Mapping[str, Any]]) -> list[Call]:
    """The call between a pair of tags; none if it is not understood."""
    if written := _FUNCTION.match(text):
        return _typed(written[1], _PARAMETER.findall(written[2]), schemas)
    pairs = _KEYED.findall(text)
    if pairs:
        return _typed(text.partition("<arg_key>")[0].strip(), pairs, schemas)
    return _from_json(text, schemas) or ([_bare(text.strip())] if text.strip() in schemas else [])


def _alone(text: str, schemas: Mapping[str, Mapping[str, Any]]) -> list[Call]:
    """The calls of an answer that holds nothing else; none if it is not understood."""
    said = text[len(found[0]) if (found := _LISTED.match(text)) else 0 :]
    if named := _NAMED.match(said):
        call = json.dumps({"name": named[1]})[:-1] + f', "arguments": {named[2]}}}'
        return _from_json(call, schemas)
    return _from_json(said, schemas)


def _from_json(text: str, schemas: Mapping[str, Mapping[str, Any]]) -> list[Call]:
    try:
        given = json.loads(text)
        listed = given if isinstance(given, list) else [given]
        if not listed or not all(_is_call(one, schemas) for one in listed):
            return []
        return [{key: one[key] for key in ("name", "arguments")} for one in read_calls(listed, 0)]
    except (ValueError, RecursionError, RowFault):
        return []


def _is_call(given: Any, schemas: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether it names an offered tool, with nothing but arguments beside."""
    return (
        isinstance(given, dict)
        and isinstance(given.get("name"), str)
        and given["name"] in schemas
        and bool(given.keys() & {"arguments", "parameters"})
        and given.keys() <= {"name", "arguments", "parameters", "id", "type"}
    )


def _bare(name: str) -> Call:
    return {"name": name, "arguments": {}}


def _typed(
    name: str, pairs: Sequence[tuple[str, str]], schemas: Mapping[str, Mapping[str, Any]]
) -> list[Call]:
    """A call whose arguments are written as text, each read by its schema."""
    if name not in schemas:
        return []
    return [{"name": name, "arguments": dict(_values(pairs, schemas[name]))}]


def _values(pairs: Sequence[tuple[str, str]], schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, text in pairs:
        about = schema.get(key.strip())
        is_text = isinstance(about, dict) and about.get("type") == "string"
        yield key.strip(), text if is_text else _value(text)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
