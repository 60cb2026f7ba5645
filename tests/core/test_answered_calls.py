"""Tool calls in an answer's text, in the forms that published chat templates teach."""

import pytest

from core.data.answered_calls import calls_in_answer
from core.data.tool_calls import read_tools

SCHEMA = {"properties": {"place": {"type": "string"}, "days": {"type": "integer"}}}
TOOLS = read_tools([{"name": "weather", "parameters": SCHEMA}, {"name": "now"}])
CALL = {"name": "weather", "arguments": {"place": "7", "days": 3}}
JSON = '{"name": "weather", "arguments": {"place": "7", "days": 3}}'
NOW = {"name": "now", "arguments": {}}


@pytest.mark.parametrize(
    ("answer", "text", "calls"),
    [
        (f"Let me see.\n<tool_call>\n{JSON}\n</tool_call>", "Let me see.", [CALL]),
        (f"<tool_call>{JSON}</tool_call>\n<tool_call>{JSON}</tool_call>", "", [CALL, CALL]),
        (f"<tool_call>{JSON}", "", [CALL]),  # whose end is the end token
        (
            "<tool_call>\n<function=weather>\n<parameter=place>\n7\n</parameter>\n<parameter=days>\n3\n"
            "</parameter>\n</function>\n</tool_call>",
            "",
            [CALL],
        ),
        ("<tool_call>\n<function=now>\n</function>\n</tool_call>", "", [NOW]),
        (
            "<tool_call>weather\n<arg_key>place</arg_key>\n<arg_value>7</arg_value>\n"
            "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
            "",
            [CALL],
        ),
        ("<tool_call>now</tool_call>", "", [NOW]),
        (JSON.replace("arguments", "parameters"), "", [CALL]),
        (f"[{JSON}, {JSON}]", "", [CALL, CALL]),
        (f"[TOOL_CALLS] [{JSON}]", "", [CALL]),
        ('weather{"place": "7", "days": 3}', "", [CALL]),
        (f"<think>\nHm: {{}}\n</think>\n\n{JSON}", "<think>\nHm: {}\n</think>", [CALL]),
    ],
)
def test_a_call_is_read_in_each_form(answer, text, calls):
    assert calls_in_answer(answer, TOOLS) == (text, calls)


@pytest.mark.parametrize(
    "answer",
    [
        "It is fine.",
        '{"place": "7"}',
        '{"name": "weather"}',
        '{"name": "weather", "arguments": {}, "mood": 1}',
        '{"name": "other", "arguments": {}}',
        '{"name": "weather", "arguments": "none"}',
        f"I would say {JSON}",
        f"<tool_call>{JSON}</tool_call><tool_call>nonsense</tool_call>",
        "<tool_call><function=other></function></tool_call>",
        '<tool_call>{"name": "weather", "arguments": {"place"</tool_call>',
        "[]",
        "",
    ],
)
def test_what_is_no_call_of_an_offered_tool_stays_text(answer):
    assert calls_in_answer(answer, TOOLS) == (answer, [])
