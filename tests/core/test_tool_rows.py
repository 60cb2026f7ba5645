"""Tools and reasoning in rows: the spellings of OpenAI, ShareGPT and Hermes become one, and every call of
five hundred rows is rendered by the base's own template.
"""

import copy
import json

import pytest

from core.data.detection import detect_file
from core.data.mapping import mapping_of
from core.data.rendering import Renderer
from core.data.tokens import tokenised
from tests.core.data_files import MESSAGES, lines, take, written
from tests.core.test_answers_in_context import THINKS, TRAITS

ASKED, ANSWERED = MESSAGES
TOOL = {"name": "find", "description": "Finds.", "parameters": {"type": "object", "properties": {"q": {}}}}
WRAPPED = {"type": "function", "function": TOOL}
CALL = {"name": "find", "arguments": {"q": "it's <b>"}}
HERMES = (
    "You are a function calling AI model. You are provided with function signatures within <tools></tools> "
    f"XML tags. Here are the available tools: <tools>\n{json.dumps([WRAPPED])}\n</tools> For each function "
    "call return a json object <tool_call>\n{}\n</tool_call>"
)
IN_TEXT = f"I look.\n<tool_call>\n{json.dumps(CALL)}\n</tool_call>"


def _openai(call):
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    turns = [ASKED, called, {"role": "tool", "tool_call_id": "x", "content": "found"}, ANSWERED]
    return {"messages": turns, "tools": [WRAPPED]}


SPELLINGS = {
    "OpenAI": _openai({"id": "x", "function": CALL | {"arguments": json.dumps(CALL["arguments"])}}),
    "OpenAI with objects": _openai({"id": "x", "type": "function", "function": CALL}),
    "as JSON in cells": _openai(CALL) | {"tools": json.dumps([TOOL])},
    "ShareGPT": {
        "conversations": [
            {"from": "human", "value": "hi"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": "found"},
            {"from": "gpt", "value": "hello"},
        ],
        "tools": json.dumps([TOOL]),
    },
    "Hermes": {
        "conversations": [
            {"from": "system", "value": HERMES},
            {"from": "human", "value": "hi"},
            {"from": "gpt", "value": IN_TEXT},
            {"from": "tool", "value": "<tool_response>\nfound\n</tool_response>"},
            {"from": "gpt", "value": "hello"},
        ],
    },
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_tools_and_calls_are_one_form_whatever_their_spelling(tmp_path, spelling):
    _, rows, found = take(tmp_path, "a.jsonl", lines(SPELLINGS[spelling]))
    (row,) = rows
    said = [(turn["role"], turn["content"]) for turn in row.messages]
    text = "I look." if spelling == "Hermes" else ""
    assert said == [("user", "hi"), ("assistant", text), ("tool", "found"), ("assistant", "hello")]
    (call,) = row.messages[1]["tool_calls"]
    assert {key: call[key] for key in CALL} == CALL
    assert [tool["function"] for tool in row.tools] == [TOOL]
    assert [one[1] for one in found] == (["tools_read"] if spelling == "Hermes" else [])


def test_what_a_system_turn_says_beside_its_tools_is_kept(tmp_path):
    qwen = (
        "You are Bob.\n\n# Tools\n\nYou may call one or more functions to assist.\n\nYou are provided with "
        f"function signatures within <tools></tools> XML tags:\n<tools>\n{json.dumps(WRAPPED)}\n</tools>\n\n"
        "For each function call, return a json object:\n<tool_call>\n{}\n</tool_call>"
    )
    said = [
        ("Answer in French. " + HERMES + "\nBe brief.", "Answer in French.\n\nBe brief."),
        (qwen, "You are Bob."),
        (f"Bob may use <tools>{json.dumps(WRAPPED)}</tools> today.", "Bob may use\n\ntoday."),
        (
            f"You may call one or more functions.\nNever swear.\n<tools>{json.dumps(WRAPPED)}</tools>\n"
            "For each function call return a json object.\nAnswer in French.",
            "Never swear.\n\nAnswer in French.",
        ),
    ]
    others = SPELLINGS["Hermes"]["conversations"][1:]
    rows = [{"conversations": [{"from": "system", "value": text}, *others]} for text, _ in said]
    _, found, _ = take(tmp_path, "a.jsonl", lines(*rows))
    assert [row.messages[0]["content"] for row in found] == [own for _, own in said]
    assert all(len(row.messages) == 5 and len(row.tools) == 1 for row in found)


def test_what_stands_between_two_lists_of_tools_is_kept(tmp_path):
    two = [f"<tools>{json.dumps({'name': name})}</tools>" for name in ("find", "look")]
    others = SPELLINGS["Hermes"]["conversations"][1:]
    system = {"from": "system", "value": "\nBe kind.\n".join(two)}
    _, (row,), _ = take(tmp_path, "a.jsonl", lines({"conversations": [system, *others]}))
    assert row.messages[0]["content"] == "Be kind."
    assert [tool["function"]["name"] for tool in row.tools] == ["find", "look"]


def test_tools_of_the_system_turn_that_are_not_those_of_the_column_are_refused(tmp_path):
    row = SPELLINGS["Hermes"]
    rows = [row | {"tools": [WRAPPED]}, row | {"tools": [{"name": "look"}]}]
    _, stored, found = take(tmp_path, "a.jsonl", lines(*rows))
    assert len(stored[0].tools) == 1
    said = "The system turn defines find, the column look, and they differ; define the tools in one of them."
    assert (2, "tools", said) in found


def test_words_beside_a_tools_result_are_kept_and_told(tmp_path):
    system, asked, calls, _, answer = SPELLINGS["Hermes"]["conversations"]
    text = "Before <tool_response>42</tool_response> and after"
    turns = [system, asked, calls, {"from": "tool", "value": text}, answer]
    _, (row,), found = take(tmp_path, "a.jsonl", lines({"conversations": turns}))
    assert row.messages[2]["content"] == text
    assert (
        1,
        "call_text",
        "Turn 4: words stand beside its <tool_response>, so that all of it stays text.",
    ) in found


def test_who_only_asks_about_calls_writes_no_rows_of_hermes(tmp_path):
    asked = {"role": "user", "content": 'What is <tool_call>{"name": "f"}</tool_call>?'}
    result = {"role": "tool", "content": "<tool_response>42</tool_response>"}
    _, (row,), found = take(tmp_path, "a.jsonl", lines({"messages": [asked, ANSWERED, result, ANSWERED]}))
    assert row.messages[2]["content"] == result["content"]
    assert found == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (IN_TEXT, ""),
        (IN_TEXT + " And now?", "Turn 3: its words behind a call are put before it."),
        ("<tool_call>find it</tool_call>", "Turn 3: what stands in <tool_call> is no JSON with a name"),
    ],
)
def test_a_call_that_is_not_taken_as_it_stands_is_told(tmp_path, text, said):
    system, asked, _, *others = SPELLINGS["Hermes"]["conversations"]
    turns = [system, asked, {"from": "gpt", "value": text}, *others]
    _, _, found = take(tmp_path, "a.jsonl", lines({"conversations": turns}))
    told = [one for one in found if one[1] == "call_text"]
    assert len(told) == bool(said)
    assert said in str(told)


def test_tools_of_a_row_that_calls_none_are_read_as_those_of_others(tmp_path):
    system, asked, *_ = SPELLINGS["Hermes"]["conversations"]
    row = {"conversations": [system, asked, {"from": "gpt", "value": "hello"}]}
    _, (found,), _ = take(tmp_path, "a.jsonl", lines(row))
    assert [turn["role"] for turn in found.messages] == ["user", "assistant"]
    assert [tool["function"] for tool in found.tools] == [TOOL]


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"tools": [{"description": "no name"}]}, "tools", "Tool 1 is an object without a name"),
        ({"tools": [3]}, "tools", "Tool 1 is a number without a name"),
        ({"tool_calls": [{"arguments": {}}]}, "tool_call", "A tool call of turn 2 has no name"),
        ({"tool_calls": "find(it)"}, "tool_call", "Turn 2 calls a tool by 'find(it)'; expected"),
        (
            {"tool_calls": [CALL | {"arguments": "[1]"}]},
            "tool_call",
            "The arguments of 'find' in turn 2 are text",
        ),
        ({"role": "user"}, "tool_call", "Turn 2 calls a tool and is the user's; only an answer can"),
        ({"reasoning": "a", "thinking": "b"}, "missing", "Turn 2 has two different texts of reasoning"),
        ({"reasoning": 7}, "missing", "The reasoning of turn 2 is a number"),
        ({"tool_calls": None, "content": "So."}, "", ""),
    ],
)
def test_what_cannot_be_read_of_tools_is_a_fault_of_its_row(tmp_path, change, code, said):
    row = SPELLINGS["OpenAI"]
    turns = [ASKED, row["messages"][1] | {key: one for key, one in change.items() if key != "tools"}]
    changed = {"messages": [*turns, *row["messages"][2:]], "tools": change.get("tools", row["tools"])}
    mapping = mapping_of(["turns=messages", "tools=tools"])
    _, _, found = take(tmp_path, "a.jsonl", lines(row, changed), mapping)
    assert [one[:2] for one in found] == ([(2, code)] if code else [])
    assert not code or said in found[0][2]


def test_a_result_that_nobody_asked_for_is_a_fault_where_tools_are_called(tmp_path):
    first, called, result, last = SPELLINGS["OpenAI"]["messages"]
    rows = [{"messages": [first, called, result, last]}, {"messages": [first, last, result, called]}]
    _, _, found = take(tmp_path, "a.jsonl", lines(*rows))
    assert found == [(2, "tool_call", "Turn 3 is a tool's result, and the turn before calls none.")]


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking", "thought", "block"])
def test_reasoning_beside_an_answer_is_kept_under_one_name(tmp_path, key):
    beside = {key: "hm"}
    if key == "block":
        beside = {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hello"}]}
    given = {"enable_thinking": False}
    row = {"messages": [ASKED, ANSWERED | beside], "chat_template_kwargs": json.dumps(given)}
    _, (found,), said = take(tmp_path, "a.jsonl", lines(row))
    assert (found.messages[1], said) == (ANSWERED | {"reasoning": "hm"}, [])
    assert found.template_kwargs == given


def test_columns_of_tools_are_taken_where_they_hold_some(tmp_path):
    path = written(
        tmp_path, "a.jsonl", lines({"messages": MESSAGES, "tools": [], "chat_template_kwargs": None})
    )
    assert detect_file(path).chosen.mapping.columns == {"turns": "messages"}
    path = written(tmp_path, "b.jsonl", lines({"prompt": [ASKED], "completion": [ANSWERED], "tools": [TOOL]}))
    assert detect_file(path).chosen.mapping.columns["tools"] == "tools"


def test_every_call_of_five_hundred_rows_is_rendered(tmp_path, tokenizer):
    """As glaive's function calling has them: several tools, calls alone and together, talk between."""
    towns = [f"town {number}" for number in range(500)]
    rows = [_glaive(number, town) for number, town in enumerate(towns)]
    summary, stored, found = take(tmp_path, "a.jsonl", lines(*rows), near=False)
    assert (summary.rows, summary.faulty, found) == (500, 0, [])
    other = copy.deepcopy(tokenizer)
    other.chat_template = TRAITS[THINKS]
    file = tokenised(stored.all_stored(), "d", Renderer(other), tmp_path / "cache")
    assert not file.problems
    learnt: dict[int, str] = {}
    for at, row in enumerate(file.rows.tolist()):
        text = "".join(other.decode(file.ids(at)[start:stop]) for start, stop in file.spans(at))
        learnt[row] = learnt.get(row, "") + text
    for row, (example, town) in enumerate(zip(stored, towns, strict=True)):
        calls = [call for turn in example.messages for call in turn.get("tool_calls", ())]
        assert learnt[row].count("<tool_call>") == len(calls) == (2 if row % 2 else 1)
        assert all(json.dumps(call["arguments"]) in learnt[row] for call in calls)
        assert f"It rains in {town}.<|im_end|>" in learnt[row]


def _glaive(number, town):
    arguments = {"town": town, "days": number % 7, "at": {"hour": [number % 24]}}
    calls = [{"name": "rain", "arguments": arguments}, {"name": "time", "arguments": {"town": town}}]
    tools = [TOOL | {"name": name, "parameters": {"properties": {"town": {}}}} for name in ("rain", "time")]
    value = json.dumps(calls if number % 2 else calls[0])
    turns = [("human", f"Rain in {town}?"), ("function_call", value)]
    turns += [("observation", json.dumps({"rain": True}))] * (1 + number % 2)
    turns += [("gpt", f"It rains in {town}."), ("human", "Thanks."), ("gpt", "You are welcome.")]
    said = [{"from": role, "value": text} for role, text in turns]
    return {"conversations": said, "tools": json.dumps(tools)}
